//! What is tried, each with what must hold.

mod admin;

mod dialogue;

mod feedback;

mod mail;

mod names;

mod templates;

use super::drive::{Order, Tally, drive};

/// One kind of input.
pub struct Target {
    /// What the command line calls it.
    pub name: &'static str,
    /// What reads it.
    pub tries: &'static str,
    /// Inputs in a run of the ordinary tests.
    pub short: u64,
    /// Inputs that `deploy/dev fuzz` asks for.
    pub full: u64,
    /// Tries them.
    pub run: fn(&Order) -> Tally,
}

/// All of them.
pub fn all() -> Vec<Target> {
    const MILLION: u64 = 1_000_000;
    vec![
        Target {
            name: "fuzz_mail",
            tries: "requests in protobuf and JSON, rendered by the repository's templates and built as mails",
            short: 400,
            full: MILLION,
            run: |order| drive(mail::Mails::new(order.planted), order),
        },
        Target {
            name: "fuzz_dialogue",
            tries: "the answers of a relay, over a socket",
            short: 600,
            full: MILLION,
            run: |order| drive(dialogue::Dialogue::new(order.planted), order),
        },
        Target {
            name: "fuzz_feedback",
            tries: "envelopes of SNS and events of SES",
            short: 3000,
            full: MILLION,
            run: |order| drive(feedback::Feedback::new(order.planted), order),
        },
        Target {
            name: "fuzz_templates",
            tries: "templates, compiled, linted and rendered",
            short: 400,
            full: MILLION,
            run: |order| drive(templates::Templates::new(order.planted), order),
        },
        Target {
            name: "fuzz_admin",
            tries: "requests to the admin's and the public listener of a daemon, pages and forms included",
            short: 800,
            full: MILLION,
            run: |order| drive(admin::Admin::new(order.planted), order),
        },
        Target {
            name: "fuzz_names",
            tries: "addresses, file names, references, AMQP headers and files of suppressions",
            short: 4000,
            full: MILLION,
            run: |order| drive(names::Names::new(order.planted), order),
        },
    ]
}
