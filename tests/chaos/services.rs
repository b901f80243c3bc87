//! The private services themselves: stopped, started, and put under a memory alarm. Only cases that run alone may do that.

use std::process::Command;

/// One of the services.
#[derive(Debug, Clone, Copy)]
pub enum Service {
    Broker,
    Database,
}

impl Service {
    fn name(self) -> String {
        match self {
            // Which of the two brokers it is, the settings of the tests say.
            Self::Broker => variable("TEST_RABBITMQ_SERVICE"),
            Self::Database => "postgres".to_owned(),
        }
    }

    /// `stop`, `start`, `restart`, `alarm-on`, `alarm-off`; returns when it is done.
    pub async fn control(self, action: &'static str) {
        let (program, name) = (variable("TEST_SERVICE_CONTROL"), self.name());
        let run = move || Command::new(program).args(["service", &name, action]).output();
        let output = tokio::task::spawn_blocking(run).await.expect("it ran").expect("TEST_SERVICE_CONTROL starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{self:?} {action}: {said}");
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set, so there is nothing to play on: run ./deploy/dev chaos, or ./deploy/dev test")
    })
}

/// What the broker says it is.
pub async fn rabbitmq_version() -> String {
    let api = variable("TEST_RABBITMQ_API");
    let answer = reqwest::get(format!("{api}/api/overview")).await.expect("the management API answers");
    let overview: serde_json::Value = answer.json().await.expect("JSON");
    overview["rabbitmq_version"].as_str().unwrap_or("unknown").to_owned()
}
