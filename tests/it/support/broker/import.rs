use lapin::{Connection, ConnectionProperties};
use serde_json::{Value, json};
use url::Url;

use super::{Broker, put};
use crate::support::clean_up;

/// Users that came with definitions, under names of this test's own; deleted at the end.
pub struct Import {
    users: Vec<String>,
    prefix: String,
    password: String,
    amqp_url: Url,
    api: Url,
}

impl Broker {
    /// What the virtual host holds, as the broker exports it.
    pub async fn definitions(&self) -> Value {
        self.get(&format!("definitions/{}", self.vhost)).await
    }

    /// Imports definitions of a whole broker into this virtual host.
    pub async fn import(&self, definitions: &Value) -> Import {
        let mut all = definitions.clone();
        let mut users = Vec::new();
        for object in all.as_object_mut().into_iter().flat_map(|kinds| kinds.values_mut()) {
            for object in object.as_array_mut().expect("a list") {
                if object.get("vhost").is_some() {
                    object["vhost"] = json!(self.vhost);
                }
                if let Some(user) = object.get("user").and_then(Value::as_str) {
                    object["user"] = json!(format!("{}-{user}", self.vhost));
                }
            }
        }
        for user in all["users"].as_array_mut().expect("users") {
            let name = format!("{}-{}", self.vhost, user["name"].as_str().expect("a name"));
            user["name"] = json!(name);
            users.push(name);
        }
        all["vhosts"] = json!([{ "name": self.vhost }]);
        let import = Import {
            users,
            prefix: self.vhost.clone(),
            password: uuid::Uuid::new_v4().simple().to_string(),
            amqp_url: Url::parse(&self.amqp_url).expect("a URL"),
            api: self.api.clone(),
        };
        let url = self.api.join("/api/definitions").expect("a URL");
        let answer = self.http.post(url).json(&all).send().await.expect("the management API answers");
        let (status, said) = (answer.status(), answer.text().await.unwrap_or_default());
        assert!(status.is_success(), "{status}: {said}");
        for user in &import.users {
            let known = json!({ "password": import.password, "tags": "" });
            put(&self.http, &self.api, &format!("users/{user}"), &known).await;
        }
        import
    }

    /// Imports policies, and returns what the first one then says; nothing where the broker is too old for them.
    pub async fn import_policies(&self, definitions: &Value) -> Option<Value> {
        let overview = self.get("overview").await;
        let version = overview["rabbitmq_version"].as_str().expect("a version");
        if version.starts_with("3.") {
            return None;
        }
        let policies = definitions["policies"].as_array().expect("policies");
        for policy in policies {
            let path = format!("policies/{}/{}", self.vhost, policy["name"].as_str().expect("a name"));
            put(&self.http, &self.api, &path, policy).await;
        }
        let name = policies.first()?["name"].as_str()?;
        Some(self.get(&format!("policies/{}/{name}", self.vhost)).await["definition"].clone())
    }
}

impl Import {
    /// `AMQP_URL` of a user, by its name in the definitions.
    pub fn url(&self, user: &str) -> String {
        let mut url = self.amqp_url.clone();
        url.set_username(&format!("{}-{user}", self.prefix)).expect("a name");
        url.set_password(Some(&self.password)).expect("a password");
        url.into()
    }

    /// A connection of that user.
    pub async fn connect(&self, user: &str) -> Connection {
        Connection::connect(&self.url(user), ConnectionProperties::default()).await.expect("it gets in")
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        let (api, users) = (self.api.clone(), self.users.clone());
        clean_up(|| async move {
            for user in users {
                if let Ok(url) = api.join(&format!("/api/users/{user}")) {
                    let _ = reqwest::Client::new().delete(url).send().await;
                }
            }
        });
    }
}
