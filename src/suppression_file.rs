//! The suppression list as a CSV file (RFC 4180), for the command line and the API alike.
//!
//! Invariant: what [`write()`] wrote, [`read`] reads to the same entries, whatever is in them. A cell that a spreadsheet would take
//! for a formula is written with an apostrophe before it, and read without.
//! Invariant: a fault names line and field, never what stood there: lists of persons are not for logs and terminals.

use std::collections::HashSet;

use chrono::{DateTime, NaiveDate, NaiveTime, SecondsFormat, Utc};
use csv::{ByteRecord, ReaderBuilder, Terminator, WriterBuilder};

use crate::{
    email::{EmailAddress, SuppressionReason},
    store::suppressions::{CATEGORY_CHARS_MAX, NOTE_CHARS_MAX, NewSuppression, SOURCE_CHARS_MAX, Suppression},
};

/// The columns, in the order in which they are written. `address_hash` is filled in only where the address has been removed, and
/// means something only under the same `EMAIL_HASH_KEY`.
pub const COLUMNS: [&str; 8] =
    ["address", "reason", "category", "source", "note", "expires_at", "created_at", "address_hash"];

/// A cell that begins so is run by spreadsheets, or (the apostrophe) stands for one that we have made harmless.
const GUARDED: [char; 7] = ['=', '+', '-', '@', '\t', '\r', '\''];
/// Why the first line is no header.
const HEADER: &str = "the first line must name the columns, each once: address (or address_hash), and if wanted reason, category, \
                      source, note, expires_at, created_at";

/// Something in a file that is no entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineFault {
    /// Where the entry begins, from 1.
    pub line: u64,
    /// Which column; nothing: the whole line.
    pub field: Option<&'static str>,
    /// What is wrong, without the value.
    pub problem: String,
}

impl std::fmt::Display for LineFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.field {
            Some(field) => write!(f, "line {}, {field}: {}", self.line, self.problem),
            None => write!(f, "line {}: {}", self.line, self.problem),
        }
    }
}

/// What a file holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// What can be written.
    pub entries: Vec<NewSuppression>,
    /// Lines that were left out, in their order.
    pub faults: Vec<LineFault>,
}

/// Whoever reads a file says how.
pub struct Reading<'a> {
    /// Hashes an address' key.
    pub hash: &'a dyn Fn(&str) -> [u8; 32],
    /// The source of entries that name none.
    pub source: &'a str,
}

/// Entries as lines; the first lines of a file have the header before them.
///
/// # Errors
/// Never in practice: memory takes every byte.
pub fn write(entries: &[Suppression], with_header: bool) -> Result<Vec<u8>, csv::Error> {
    let mut writer = WriterBuilder::new().terminator(Terminator::CRLF).from_writer(Vec::new());
    if with_header {
        writer.write_record(COLUMNS)?;
    }
    for entry in entries {
        let hash = if entry.address.is_none() { hex::encode(entry.address_hash) } else { String::new() };
        let cells = [
            entry.address.as_deref().unwrap_or_default(),
            entry.reason.name(),
            entry.category.as_deref().unwrap_or_default(),
            &entry.source,
            entry.note.as_deref().unwrap_or_default(),
            &entry.expires_at.map(time).unwrap_or_default(),
            &time(entry.created_at),
            &hash,
        ]
        .map(guarded);
        writer.write_record(&cells)?;
    }
    writer.into_inner().map_err(|error| csv::Error::from(error.into_error()))
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

fn guarded(cell: &str) -> String {
    if cell.starts_with(GUARDED) { format!("'{cell}") } else { cell.to_owned() }
}

fn unguarded(cell: &str) -> &str {
    cell.strip_prefix('\'').filter(|rest| rest.starts_with(GUARDED)).unwrap_or(cell)
}

/// Reads a whole file: every entry, and every fault. Cells are separated by commas, or by semicolons where the first line has
/// them instead, as spreadsheets of some languages write them.
#[must_use]
pub fn read(bytes: &[u8], reading: &Reading<'_>) -> Contents {
    let first_line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let delimiter = if first_line.contains(&b';') && !first_line.contains(&b',') { b';' } else { b',' };
    let mut reader = ReaderBuilder::new().has_headers(false).flexible(true).delimiter(delimiter).from_reader(bytes);
    let mut contents = Contents::default();
    let mut record = ByteRecord::new();
    let mut columns: Option<Vec<&'static str>> = None;
    loop {
        match reader.read_byte_record(&mut record) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                let line = reader.position().line();
                contents.faults.push(LineFault {
                    line,
                    field: None,
                    problem: format!("cannot be read: {}", kind_of(&error)),
                });
                break;
            }
        }
        let line = record.position().map_or(0, csv::Position::line);
        let Some(columns) = &columns else {
            match header(&record) {
                Some(known) => columns = Some(known),
                None => {
                    contents.faults.push(LineFault { line, field: None, problem: HEADER.to_owned() });
                    return contents;
                }
            }
            continue;
        };
        match entry(&record, columns, reading) {
            Ok(entry) => contents.entries.push(entry),
            Err((field, problem)) => contents.faults.push(LineFault { line, field, problem }),
        }
    }
    if columns.is_none() && contents.faults.is_empty() {
        contents.faults.push(LineFault { line: 1, field: None, problem: HEADER.to_owned() });
    }
    contents
}

/// The library's own words may show what stood there.
fn kind_of(error: &csv::Error) -> &'static str {
    match error.kind() {
        csv::ErrorKind::Io(_) => "the file broke off",
        _ => "it is no CSV",
    }
}

fn header(record: &ByteRecord) -> Option<Vec<&'static str>> {
    let names: Option<Vec<&'static str>> = record
        .iter()
        .map(|cell| {
            let cell = std::str::from_utf8(cell).ok()?.trim().to_ascii_lowercase();
            COLUMNS.into_iter().find(|name| *name == cell)
        })
        .collect();
    let names = names?;
    let are_distinct = names.iter().collect::<HashSet<_>>().len() == names.len();
    (are_distinct && names.iter().any(|name| matches!(*name, "address" | "address_hash"))).then_some(names)
}

type Fault = (Option<&'static str>, String);

fn entry(record: &ByteRecord, columns: &[&'static str], reading: &Reading<'_>) -> Result<NewSuppression, Fault> {
    if record.len() != columns.len() {
        let problem = format!("{} cells, and the first line names {} columns", record.len(), columns.len());
        return Err((None, problem));
    }
    let mut cells = [""; COLUMNS.len()];
    for (name, cell) in columns.iter().zip(record) {
        let cell = std::str::from_utf8(cell).map_err(|_| (Some(*name), "it is not UTF-8".to_owned()))?;
        if cell.contains('\0') {
            return Err((Some(name), "it holds a NUL character".to_owned()));
        }
        if let Some(place) = COLUMNS.iter().position(|column| column == name) {
            cells[place] = unguarded(cell);
        }
    }
    let [address, reason, category, source, note, expires_at, created_at, hash] = cells;
    let (address_hash, address) = whom(address.trim(), hash.trim(), reading)?;
    let reason = match reason.trim() {
        "" => SuppressionReason::Operator,
        name => SuppressionReason::from_name(name).ok_or_else(|| {
            let names: Vec<_> = SuppressionReason::ALL.iter().map(|reason| reason.name()).collect();
            (Some("reason"), format!("it is one of {}", names.join(", ")))
        })?,
    };
    Ok(NewSuppression {
        address_hash,
        address,
        reason,
        source: text(source, "source", SOURCE_CHARS_MAX)?.unwrap_or_else(|| reading.source.to_owned()),
        category: text(category, "category", CATEGORY_CHARS_MAX)?,
        note: text(note, "note", NOTE_CHARS_MAX)?,
        expires_at: moment(expires_at, "expires_at")?,
        created_at: moment(created_at, "created_at")?,
    })
}

fn whom(address: &str, hash: &str, reading: &Reading<'_>) -> Result<([u8; 32], Option<String>), Fault> {
    if address.is_empty() && !hash.is_empty() {
        let hash = hex::decode(hash).ok().and_then(|bytes| bytes.try_into().ok());
        let hash = hash.ok_or_else(|| (Some("address_hash"), "it is no hash: 64 hexadecimal digits".to_owned()))?;
        return Ok((hash, None));
    }
    let address = EmailAddress::parse(address).map_err(|error| (Some("address"), error.to_string()))?;
    Ok(((reading.hash)(&address.key()), Some(address.as_str().to_owned())))
}

fn text(cell: &str, field: &'static str, chars_max: usize) -> Result<Option<String>, Fault> {
    if cell.chars().count() > chars_max {
        return Err((Some(field), format!("it is longer than {chars_max} characters")));
    }
    Ok((!cell.is_empty()).then(|| cell.to_owned()))
}

fn moment(cell: &str, field: &'static str) -> Result<Option<DateTime<Utc>>, Fault> {
    match cell.trim() {
        "" => Ok(None),
        cell => read_moment(cell).map(Some).ok_or_else(|| {
            (Some(field), "it is no time such as 2026-11-24 or 2026-11-24T18:00:00Z, in the years 1 to 9999".to_owned())
        }),
    }
}

/// A date (its first moment in UTC) or a time of RFC 3339.
#[must_use]
pub fn read_moment(text: &str) -> Option<DateTime<Utc>> {
    let at = match DateTime::parse_from_rfc3339(text) {
        Ok(at) => at.to_utc(),
        Err(_) => text.parse::<NaiveDate>().ok()?.and_time(NaiveTime::MIN).and_utc(),
    };
    (1..=9999).contains(&chrono::Datelike::year(&at)).then_some(at)
}

#[cfg(test)]
mod tests;
