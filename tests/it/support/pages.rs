use reqwest::{
    Client, Method, RequestBuilder, Response, StatusCode,
    header::{COOKIE, LOCATION, SET_COOKIE},
    redirect::Policy,
};

use super::daemon::{Daemon, client};

/// Somebody who is signed in, and sends what a browser sends.
pub struct Visitor {
    http: Client,
    base: String,
    cookie: String,
}

impl Visitor {
    /// Signs in with a token.
    pub async fn sign_in(daemon: &Daemon, token: &str) -> Self {
        let mut visitor = Self::stranger(daemon);
        let answer = visitor.send(Method::POST, "/sign-in").form(&[("token", token)]).send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::SEE_OTHER, "signed in");
        let cookie = answer.headers()[SET_COOKIE].to_str().expect("text");
        visitor.cookie = cookie.split(';').next().expect("a cookie").to_owned();
        visitor
    }

    /// Nobody.
    pub fn stranger(daemon: &Daemon) -> Self {
        Self { http: client(Policy::none()), base: daemon.url(""), cookie: String::new() }
    }

    /// The same browser at another daemon.
    pub fn at(&self, daemon: &Daemon) -> Self {
        Self { http: self.http.clone(), base: daemon.url(""), cookie: self.cookie.clone() }
    }

    /// What the browser keeps.
    pub fn cookie(&self) -> &str {
        &self.cookie
    }

    /// A request with the cookie; it is not followed where it leads.
    pub fn send(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).header(COOKIE, &self.cookie)
    }

    /// A page as it is.
    pub async fn look(&self, path: &str) -> Response {
        self.send(Method::GET, path).send().await.expect("an answer")
    }

    /// A page's HTML.
    pub async fn page(&self, path: &str) -> String {
        let answer = self.look(path).await;
        let status = answer.status();
        let html = answer.text().await.expect("text");
        assert_eq!(status, StatusCode::OK, "{path}: {html}");
        html
    }

    /// The word that this session's forms hold, as a page shows it.
    pub async fn csrf(&self) -> String {
        let html = self.page("/changes").await;
        let (_, rest) = html.split_once("name=\"csrf\" value=\"").expect("a form");
        rest.split('"').next().expect("a value").to_owned()
    }

    /// Sends a form as one of our pages does; answers where it leads.
    pub async fn submit(&self, path: &str, fields: &[(&str, &str)]) -> String {
        let answer = self.post(path, fields).await;
        let (status, to) = (answer.status(), answer.headers().get(LOCATION).cloned());
        let html = answer.text().await.expect("text");
        assert_eq!(status, StatusCode::SEE_OTHER, "{path}: {html}");
        to.expect("it leads somewhere").to_str().expect("text").to_owned()
    }

    /// Sends a form as one of our pages does.
    pub async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Response {
        let csrf = self.csrf().await;
        let all: Vec<_> = fields.iter().copied().chain([("csrf", csrf.as_str())]).collect();
        self.send(Method::POST, path).form(&all).send().await.expect("an answer")
    }
}
