//! This process' memory holds passwords, keys and mails: when it dies, none of that is written to a disk.
//!
//! Invariant: it is forbidden before the first secret is read, unless `POSTRIDER_CORE_DUMPS` allows it.

/// Forbids core dumps, and other processes of the same user to look into this one (`/proc/PID/mem`, `environ`, a debugger).
///
/// # Errors
/// When the system refuses; everything else works all the same.
#[cfg(target_os = "linux")]
pub fn forbid() -> std::io::Result<()> {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    // The limit alone does not hold where the system hands dumps to a program, as systemd-coredump; this does.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?)
}

/// Elsewhere there is nothing that we know how to forbid.
///
/// # Errors
/// Never.
#[cfg(not(target_os = "linux"))]
pub fn forbid() -> std::io::Result<()> {
    Ok(())
}
