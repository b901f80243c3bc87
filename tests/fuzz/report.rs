//! The table at the end.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::drive::Tally;

/// A row for each target.
pub fn table(tallies: &[Tally], planted: bool) -> Table {
    let mut table = Table::new();
    let last = if planted { "planted fault" } else { "faults" };
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["target", "inputs", "all the way", "seconds", "slowest, ms", last]);
    for tally in tallies {
        let found = match (&tally.fault, planted) {
            (Some(fault), true) => format!("found by input {}", fault.number),
            (None, true) => "NOT FOUND".to_owned(),
            (Some(fault), false) => format!("1, by input {}", fault.number),
            (None, false) => "none".to_owned(),
        };
        table.add_row([
            tally.name.to_owned(),
            tally.inputs.to_string(),
            tally.all_the_way.to_string(),
            tally.took.as_secs().to_string(),
            tally.slowest.as_millis().to_string(),
            found,
        ]);
    }
    for column in 1..=4 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
