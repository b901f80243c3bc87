//! Every case, in the order of the table.

mod broker;

mod cut_one;

mod database;

mod kills;

mod points;

mod poison;

mod relay;

mod relay_line;

mod relay_tls;

mod self_test;

use std::pin::Pin;

use crate::{report::Report, stage::Run};

/// Tells these from other tests where both are asked for by a part of their names.
pub const PREFIX: &str = "chaos_";

/// What plays a case, on a thread of its own.
type Play = Box<dyn Fn(Run) -> Pin<Box<dyn Future<Output = Report>>> + Send + Sync>;

/// Something that can go wrong.
pub struct Case {
    /// As it is asked for.
    pub name: String,
    /// In one sentence.
    pub proves: &'static str,
    /// It disturbs the services, so nothing else may run beside it.
    pub alone: bool,
    /// Requests in the short form.
    pub short: usize,
    /// Requests in the full form.
    pub full: usize,
    /// Plays it.
    pub play: Play,
}

impl Case {
    fn new<F, Fut>(name: impl Into<String>, proves: &'static str, (short, full): (usize, usize), play: F) -> Self
    where
        F: Fn(Run) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Report> + 'static,
    {
        let play: Play = Box::new(move |run| Box::pin(play(run)));
        Self { name: format!("{PREFIX}{}", name.into()), proves, alone: false, short, full, play }
    }

    /// It stops a service.
    fn alone(mut self) -> Self {
        self.alone = true;
        self
    }
}

/// All of them.
pub fn all() -> Vec<Case> {
    [
        points::cases(),
        kills::cases(),
        broker::cases(),
        database::cases(),
        relay::cases(),
        relay_line::cases(),
        relay_tls::cases(),
        cut_one::cases(),
        poison::cases(),
        self_test::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
