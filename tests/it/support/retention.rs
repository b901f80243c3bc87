use std::{process::Command, sync::Arc};

use chrono::{DateTime, Utc};
use postrider::{
    config::{Environment, PipelineConfig, Settings},
    retention::{Pace, PassReport, pass},
    store::{
        Store,
        retention::{Periods, decisions::DECISIONS},
    },
};
use sqlx::AssertSqlSafe;
use tokio_util::sync::CancellationToken;

use super::{daemon::Variables, database::Database, wait::until_some};

/// The rules of these settings.
pub fn rules(variables: &Variables) -> PipelineConfig {
    let environment: Environment = variables.iter().collect();
    Settings::read(&environment, None).pipeline().expect("sound settings")
}

impl Database {
    /// One whole pass as if it were this time, with the rules of these settings.
    pub async fn retain_at(&self, variables: &Variables, now: DateTime<Utc>) -> PassReport {
        let store: Arc<Store> = self.store();
        let mut desk =
            until_some("the right to work", async || store.try_lock_retention().await.expect("an answer")).await;
        let moments = Periods::of(&rules(variables)).at(now);
        let mut pace = Pace::of_share(100);
        let report = pass(&store, &mut desk, &moments, &mut pace, &CancellationToken::new(), |_, _| ()).await;
        desk.leave().await;
        let failed: Vec<_> =
            report.steps.iter().filter_map(|step| Some((step.step.name, step.error.as_ref()?))).collect();
        assert!(report.is_done(), "{failed:?}");
        report
    }

    /// Everything in it, as text.
    pub fn dump(&self) -> String {
        let dumped = Command::new("pg_dump").args(["--no-owner", self.url()]).output().expect("pg_dump is installed");
        assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));
        String::from_utf8(dumped.stdout).expect("UTF-8")
    }

    /// Columns that hold something although a person might be in them.
    pub async fn columns_with_persons(&self) -> Vec<String> {
        let mut found = Vec::new();
        for decision in DECISIONS {
            for column in decision.removed {
                // A note of retention's own says whose it is.
                let sql = format!(
                    "select count(*) from {0} where {1} is not null and {1}::text not in ('', '{{}}', '\\\\x')
                        and {1}::text not like 'its content was removed by anonymising'
                        and {1}::text not like '%when its person was to be forgotten'",
                    decision.table, column
                );
                let rows: i64 = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.pool).await.expect("an answer");
                if rows > 0 {
                    found.push(format!("{}.{column}: {rows}", decision.table));
                }
            }
        }
        found
    }
}
