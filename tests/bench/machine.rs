//! On what was measured: the machine and the versions of everything that took part.

use std::{fs, process::Command};

use super::{postfix, process, services::Services};

pub(crate) type Facts = Vec<(&'static str, String)>;

/// `load` is the load average before anything began.
pub(crate) fn machine(load: Option<f64>) -> Facts {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("of unknown model", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    vec![
        ("cores", process::cores().to_string()),
        ("CPU", model.to_owned()),
        ("memory", process::machine_memory_gib().map_or_else(|| "?".to_owned(), |gib| format!("{gib:.0} GiB"))),
        ("Linux", kernel.trim().to_owned()),
        ("load before", load.map_or_else(|| "?".to_owned(), |load| format!("{load:.2}"))),
    ]
}

pub(crate) fn versions(services: &Services) -> Facts {
    let commit = Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty", "--exclude=*"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map_or_else(|| "of unknown commit".to_owned(), |text| text.trim().to_owned());
    vec![
        ("postrider", format!("{} {commit}", env!("CARGO_PKG_VERSION"))),
        ("profile", if cfg!(debug_assertions) { "debug: not for figures" } else { "release" }.to_owned()),
        ("RabbitMQ", services.rabbitmq_versions()),
        ("PostgreSQL", services.postgresql.clone()),
        ("Postfix", postfix::version().unwrap_or_else(|| "unknown".to_owned())),
    ]
}
