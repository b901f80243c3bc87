use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use fantoccini::{
    Client, ClientBuilder, Locator,
    elements::Element,
    wd::{Capabilities, WebDriverCompatibleCommand},
};
use reqwest::Method;
use serde_json::{Value, json};
use url::{ParseError, Url};

use super::{
    daemon::Daemon,
    wait::{until, until_some},
};

/// The width of a phone and the height of its window, in CSS pixels.
pub const PHONE: (u32, u32) = (390, 844);
/// The same of a desktop.
pub const DESKTOP: (u32, u32) = (1280, 900);

/// What axe-core calls the rules of WCAG 2.1, A and AA.
const WCAG: &[&str] = &["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"];

/// What is not where it belongs: words of a cell among the labels of a narrow table, fields that stick out of their card, and a
/// section that is open but out of sight.
const ASTRAY: &str = "const astray = [];
    for (const cell of document.querySelectorAll('table.stack td[data-label]:not([data-label=\"\"])')) {
        if (getComputedStyle(cell).display === 'table-cell') continue;
        const words = document.createRange();
        words.selectNodeContents(cell);
        const label = cell.getBoundingClientRect().left + parseFloat(getComputedStyle(cell, '::before').width);
        if ([...words.getClientRects()].some((box) => box.width > 0 && box.left < label))
            astray.push(`among the labels: ${cell.dataset.label}`);
    }
    for (const card of document.querySelectorAll('.card')) {
        const right = card.getBoundingClientRect().right - parseFloat(getComputedStyle(card).paddingRight);
        for (const field of card.querySelectorAll('input, select, textarea, button'))
            if (field.getBoundingClientRect().right > right + 1) astray.push(`sticks out of its card: ${field.name}`);
    }
    const here = document.querySelector('nav [aria-current=page]');
    if (here) {
        const [link, line] = [here.getBoundingClientRect(), here.parentElement.getBoundingClientRect()];
        if (link.left < line.left - 1 || link.right > line.right + 1) astray.push(`out of sight: ${here.textContent}`);
    }
    return astray;";

/// A real browser that nobody sees, with a profile of its own.
pub struct Browser {
    /// What drives it.
    pub client: Client,
    base: String,
    driver: Child,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts one that looks at this daemon's pages.
    pub async fn start(daemon: &Daemon) -> Self {
        Self::start_at(&daemon.url("")).await
    }

    /// Starts one that looks at the pages below this address.
    pub async fn start_at(base: &str) -> Self {
        let profile = tempfile::TempDir::new().expect("a folder");
        let mut driver = Command::new(super::service("TEST_CHROMEDRIVER"))
            .arg("--port=0")
            .env("HOME", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver starts");
        let said = BufReader::new(driver.stdout.take().expect("its output"));
        let port = said.lines().map_while(Result::ok).find_map(|line| {
            let (_, port) = line.split_once("started successfully on port ")?;
            port.trim_end_matches('.').parse::<u16>().ok()
        });
        let url = format!("http://127.0.0.1:{}", port.expect("chromedriver says its port"));
        let arguments = [
            "--headless=new".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--disable-gpu".to_owned(),
            "--hide-scrollbars".to_owned(),
            format!("--user-data-dir={}", profile.path().display()),
        ];
        let capabilities = json!({
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        });
        let capabilities: Capabilities = serde_json::from_value(capabilities).expect("an object");
        let client = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new())
            .capabilities(capabilities)
            .connect(&url)
            .await
            .expect("a browser");
        let browser = Self { client, base: base.to_owned(), driver, _profile: profile };
        browser.resize(DESKTOP).await;
        browser
    }

    /// Makes the window's inside this large, whatever the outside then is.
    pub async fn resize(&self, (width, height): (u32, u32)) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// Light or dark, as the person prefers.
    pub async fn prefer(&self, scheme: &str) {
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", features).await;
    }

    async fn devtools(&self, command: &str, parameters: Value) -> Value {
        let body = json!({ "cmd": command, "params": parameters });
        self.client.issue_cmd(Vendor("goog/cdp/execute", body)).await.expect("a command of the browser's own")
    }

    /// Opens a page.
    pub async fn open(&self, path: &str) {
        self.client.goto(&format!("{}{path}", self.base)).await.expect("a page");
    }

    /// Path and query of the page that is open.
    pub async fn path(&self) -> String {
        let url = self.client.current_url().await.expect("an address");
        url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()))
    }

    /// Waits until a page of this path is open.
    pub async fn arrives_at(&self, path: &str) {
        until(&format!("the browser is at {path}"), async || self.path().await.split('?').next() == Some(path)).await;
    }

    /// Signs in as a person does.
    pub async fn sign_in(&self, token: &str) {
        self.open("/sign-in").await;
        self.fill("#token", token).await;
        self.click("button[type=submit]").await;
        until("signed in", async || !self.path().await.starts_with("/sign-in")).await;
    }

    /// The first element that a CSS selector finds, once there is one.
    pub async fn find(&self, selector: &str) -> Element {
        let what = format!("an element {selector}");
        until_some(&what, async || self.client.find(Locator::Css(selector)).await.ok()).await
    }

    /// How many elements a CSS selector finds.
    pub async fn count(&self, selector: &str) -> usize {
        self.client.find_all(Locator::Css(selector)).await.map_or(0, |all| all.len())
    }

    /// Presses it, once there is one; one that was replaced in this moment is looked for again.
    pub async fn click(&self, selector: &str) {
        until(&format!("an element {selector} that can be pressed"), async || {
            match self.find(selector).await.click().await {
                Ok(()) => true,
                Err(error) if error.is_stale_element_reference() => false,
                Err(error) => panic!("{selector}: {error}"),
            }
        })
        .await;
    }

    /// Writes into a field, in place of what is there.
    pub async fn fill(&self, selector: &str, text: &str) {
        let field = self.find(selector).await;
        field.clear().await.expect("it is a field");
        field.send_keys(text).await.expect("it takes keys");
    }

    /// What the page shows.
    pub async fn text(&self) -> String {
        let text = self.run("return document.body.innerText", Vec::new()).await;
        text.as_str().expect("text").to_owned()
    }

    /// Waits until the page shows these words.
    pub async fn shows(&self, words: &str) {
        // The page is asked itself, and not its driver: that looks at every element's style for each answer, which keeps a
        // core busy for as long as somebody waits.
        until(&format!("the page shows: {words}"), async || {
            let script = "return document.body.innerText.includes(arguments[0])";
            // Another page may be about to open.
            self.client.execute(script, vec![json!(words)]).await.is_ok_and(|found| found == true)
        })
        .await;
    }

    /// Runs a script in the page.
    pub async fn run(&self, script: &str, arguments: Vec<Value>) -> Value {
        self.client.execute(script, arguments).await.expect("a script")
    }

    /// Nothing is wider than the window, and neither the console nor an accessibility checker has anything to complain about.
    pub async fn is_sound(&self) {
        let path = self.path().await;
        let faults = self.faults().await;
        assert!(faults.is_empty(), "{path}: {faults:#?}");
    }

    /// What is wrong with the page: too wide, said by the console since it was asked last, or found by axe-core (WCAG 2.1 A and
    /// AA, and what it calls best practice).
    pub async fn faults(&self) -> Vec<String> {
        self.faults_by(&[WCAG, &["best-practice"]].concat()).await
    }

    /// [`Self::is_sound`] for a mail: programs show it within a page of their own, and best practice speaks of pages.
    pub async fn is_readable(&self) {
        let path = self.path().await;
        let faults = self.faults_by(WCAG).await;
        assert!(faults.is_empty(), "{path}: {faults:#?}");
    }

    /// By how much the page is wider than the window, in CSS pixels.
    pub async fn excess(&self) -> Option<i64> {
        let wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
        self.run(wide, Vec::new()).await.as_i64()
    }

    async fn faults_by(&self, rules: &[&str]) -> Vec<String> {
        let mut faults = self.complaints().await;
        if let Some(by @ 1..) = self.excess().await {
            faults.push(format!("wider than the window by {by}"));
        }
        // Pages are told of a new size with the next picture that is drawn.
        let astray = format!(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done((() => {{ {ASTRAY} }})())));"
        );
        let astray = self.client.execute_async(&astray, Vec::new()).await.expect("a check");
        faults.extend(astray.as_array().expect("a list").iter().map(ToString::to_string));
        // Half a megabyte, which a page keeps until another is opened.
        if self.run("return typeof axe === 'undefined'", Vec::new()).await == true {
            let axe = std::fs::read_to_string(super::service("TEST_AXE")).expect("axe-core");
            self.run(&axe, Vec::new()).await;
        }
        let check = "const [rules, done] = arguments;
            axe.run(document, { iframes: false, runOnly: rules, resultTypes: ['violations'] })
                .then((found) => done(found.violations.filter((one) => one.impact !== 'minor')
                    .map((one) => `${one.impact} ${one.id}: ${one.help}: ` + one.nodes.map((node) => node.html).join(' | '))))
                .catch((error) => done([String(error)]));";
        let found = self.client.execute_async(check, vec![json!(rules)]).await.expect("a check");
        faults.extend(found.as_array().expect("a list").iter().map(ToString::to_string));
        faults
    }

    /// What the console has said since it was asked last: refused by the policy, not found, thrown.
    pub async fn complaints(&self) -> Vec<String> {
        let lines = self.client.issue_cmd(Vendor("se/log", json!({ "type": "browser" }))).await.expect("the console");
        let all = lines.as_array().cloned().unwrap_or_default();
        all.iter()
            .filter(|line| line["level"] != "DEBUG" && line["level"] != "INFO")
            .map(|line| line["message"].to_string())
            .collect()
    }

    /// A picture of the whole page, where `TEST_SCREENSHOTS` names a folder for them.
    pub async fn picture(&self, name: &str, (width, height): (u32, u32)) {
        let Some(folder) = std::env::var_os("TEST_SCREENSHOTS").map(PathBuf::from) else { return };
        // What a frame shows is drawn only where the window shows the frame.
        let whole = self.run("return document.documentElement.scrollHeight", Vec::new()).await;
        let whole = whole.as_u64().and_then(|whole| u32::try_from(whole).ok()).expect("a height");
        self.resize((width, height.max(whole))).await;
        let picture = self.devtools("Page.captureScreenshot", json!({ "captureBeyondViewport": true })).await;
        self.resize((width, height)).await;
        let bytes = STANDARD.decode(picture["data"].as_str().expect("a picture")).expect("base64");
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), bytes).expect("a file");
    }

    /// Looks at the page as it is at the width of a phone and of a desktop, light and dark, and takes a picture of each.
    pub async fn inspect(&self, name: &str) {
        self.inspect_by(name, async || self.is_sound().await).await;
    }

    /// [`Self::inspect`] for a mail.
    pub async fn inspect_mail(&self, name: &str) {
        self.inspect_by(name, async || self.is_readable().await).await;
    }

    async fn inspect_by(&self, name: &str, check: impl AsyncFn()) {
        for (size, width) in [(PHONE, "phone"), (DESKTOP, "desktop")] {
            self.resize(size).await;
            for scheme in ["light", "dark"] {
                self.prefer(scheme).await;
                check().await;
                self.picture(&format!("{name}-{width}-{scheme}"), size).await;
            }
        }
        self.prefer("light").await;
    }

    /// Ends it.
    pub async fn close(self) {
        self.client.clone().close().await.expect("it closes");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser ends with its driver.
        let _ = Command::new("pkill").args(["-P", &self.driver.id().to_string()]).status();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// A command that only this browser knows.
#[derive(Debug)]
struct Vendor(&'static str, Value);

impl WebDriverCompatibleCommand for Vendor {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.0))
    }

    fn method_and_body(&self, _url: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(self.1.to_string()))
    }
}
