//! Where settings come from: files named by `NAME_FILE`, the TOML file, and which of them wins.

use secrecy::ExposeSecret;
use tempfile::TempDir;

use super::*;
use crate::email::Lane;

/// The configuration of a TOML file and the required settings, less what the file itself gives.
fn load_file(text: &str, more: &[(&str, &str)], without: &[&str]) -> Result<Config, Faults> {
    let dir = TempDir::new().expect("a folder");
    let path = write(&dir, "postrider.toml", text);
    let environment = REQUIRED.iter().chain(more).filter(|(name, _)| !without.contains(name)).copied().collect();
    Config::load(&environment, Some(&path))
}

#[test]
fn a_file_gives_any_setting() {
    let dir = TempDir::new().expect("a folder");
    let password = write(&dir, "password", "from-a-file\r\n");
    let port = write(&dir, "port", "2525\n");
    let files = [
        ("SMTP_PASSWORD_FILE", password.to_str().expect("UTF-8")),
        ("SMTP_PORT_FILE", port.to_str().expect("UTF-8")),
        ("SMTP_USER", "u"),
    ];
    let relay = load(&files).expect("valid").smtp.relays.remove(0);
    assert_eq!(relay.port, 2525);
    assert_eq!(relay.credentials.expect("credentials").password.expose_secret(), "from-a-file");

    let twice = faults(&[files[0], files[2], ("SMTP_PASSWORD", "also-here")]);
    assert_eq!(twice.len(), 1, "{twice:?}");
    assert_eq!(twice[0].problem, "is set twice: also SMTP_PASSWORD_FILE is set, keep one");

    let empty = write(&dir, "empty", "\n");
    for (path, problem) in [("/nonexistent/file", "cannot be read"), (empty.to_str().expect("UTF-8"), "is empty")] {
        let faults = faults(&[("EMAIL_TIMEZONE_FILE", path)]);
        assert!(faults[0].problem.contains(problem), "{faults:?}");
        assert_eq!(faults[0].setting, "EMAIL_TIMEZONE (from EMAIL_TIMEZONE_FILE)");
    }
}

#[test]
fn the_environment_wins_over_the_file() {
    let text = r#"
        [settings]
        smtp_from_name = "from the file"
        email_events = "all"
        email_p0_sources = ["incident", "noc"]
        smtp_use_tls = false
        [lanes.fast]
        prefetch = 10
        connections = 2
        ladder = ["200ms", "1s"]
        age_max = "30m"
    "#;
    let config = load_file(text, &[("EMAIL_EVENTS", "off"), ("EMAIL_PREFETCH_FAST", "20")], &[]).expect("valid");
    assert_eq!(config.mail.from_name.as_deref(), Some("from the file"));
    assert_eq!(config.store.events, EventsMode::Off);
    assert_eq!(config.pipeline.p0_sources, ["incident", "noc"]);
    assert_eq!(config.smtp.relays[0].tls, RelayTls::Plain);
    assert_eq!((*config.broker.prefetch.get(Lane::Fast), *config.smtp.connections.get(Lane::Fast)), (20, 2));
    assert_eq!(config.broker.ladders.fast, [Duration::from_millis(200), seconds(1)]);
    assert_eq!((config.pipeline.age_max.fast, config.pipeline.age_max.bulk), (seconds(1800), seconds(86400)));
}

#[test]
fn the_file_is_named_by_the_environment_unless_the_command_line_does() {
    let dir = TempDir::new().expect("a folder");
    let one = write(&dir, "one.toml", "[settings]\nlog_level = \"warn\"");
    let two = write(&dir, "two.toml", "[settings]\nlog_level = \"debug\"");
    let environment = environment(&[("POSTRIDER_CONFIG", one.to_str().expect("UTF-8"))]);
    assert_eq!(Config::load(&environment, None).expect("valid").log.filter, "warn");
    assert_eq!(Config::load(&environment, Some(&two)).expect("valid").log.filter, "debug");
}

#[test]
fn the_file_lists_relays() {
    let dir = TempDir::new().expect("a folder");
    let password = write(&dir, "password", "listed-secret\n");
    let text = format!(
        r#"
        [[relays]]
        name = "primary"
        host = "one.example"
        user = "u"
        password_file = "{}"
        [[relays]]
        host = "two.example"
        tls = "implicit"
        [[relays]]
        host = "192.0.2.7"
        port = 25
        tls = "plain"
        user = "u"
        password = "in-the-clear"
        "#,
        password.display()
    );
    let config = load_file(&text, &[("SMTP_PORT", "2525")], &["SMTP_HOST"]).expect("valid");
    let seen: Vec<_> = config.smtp.relays.iter().map(|r| (r.name.as_str(), r.port, r.tls)).collect();
    assert_eq!(
        seen,
        [
            ("primary", 587, RelayTls::StartTls),
            ("two.example:465", 465, RelayTls::Implicit),
            ("192.0.2.7:25", 25, RelayTls::Plain)
        ]
    );
    let credentials = config.smtp.relays[0].credentials.as_ref().expect("credentials");
    assert_eq!(credentials.password.expose_secret(), "listed-secret");
    assert_eq!(
        config.warnings,
        [
            "SMTP_PORT is not used: the settings file names the relays",
            "the password for the relay 192.0.2.7:25 travels unencrypted"
        ]
    );

    let overridden = load_file(&text, &[], &[]).expect("valid");
    assert_eq!(overridden.smtp.relays.len(), 1);
    assert_eq!(overridden.smtp.relays[0].host, "mail.example");
    assert!(overridden.warnings[0].contains("are not used: SMTP_HOST of the environment wins"));
}

#[test]
fn a_relay_of_the_file_may_have_connection_limits_of_its_own() {
    let text = r#"
        [[relays]]
        host = "one.example"
        connections_bulk = 1
        connections_standard = 64
        [[relays]]
        host = "two.example"
    "#;
    let relays = load_file(text, &[], &["SMTP_HOST"]).expect("valid").smtp.relays;
    assert_eq!(relays[0].connections, PerLane { fast: None, standard: Some(64), bulk: Some(1) });
    assert_eq!(relays[1].connections, PerLane { fast: None, standard: None, bulk: None });

    for (line, problem) in [
        ("connections_bulk = 0", "\"0\" is not a whole number from 1 to 500"),
        ("connections_fast = \"many\"", "\"many\" is not a whole number from 1 to 500"),
        ("connections_fast = 33", "is 33, more than the 32 of EMAIL_PREFETCH_FAST"),
        ("connections_slow = 1", "did you mean connections_"),
    ] {
        let text = format!("[[relays]]\nhost = \"one.example\"\n{line}");
        let faults = load_file(&text, &[], &["SMTP_HOST"]).expect_err("a fault");
        assert_eq!(faults.iter().count(), 1, "{faults}");
        assert!(faults.to_string().contains(problem), "{line}: {faults}");
    }
}

#[test]
fn what_is_wrong_with_the_file_comes_with_the_rest() {
    let text = r#"
        smtp_port = 25
        relay = 1
        [settings]
        smtp_hots = "x"
        smtp_port = { a = 1 }
        email_p0_sources = []
        email_prefetch_bulk = 7
        [lanes.bulk]
        prefetch = 8
        prefech = 9
        [lanes.slow]
        prefetch = 9
        [[relays]]
        name = "a"
        port = 0
        tls = "maybe"
        user = "u"
        password_file = "/nonexistent/password"
        [[relays]]
        user = "u"
        host = "b.example"
        hosst = "b.example"
    "#;
    let faults = load_file(text, &[("ADMIN_ADDR", "x")], &["SMTP_HOST"]).expect_err("faults");
    let text = faults.to_string();
    for part in [
        "smtp_port (in ",
        "relay (in ",
        "did you mean relays?",
        "did you mean smtp_host?",
        "settings.smtp_port (in ",
        "is an empty list",
        "says the same as ",
        "did you mean prefetch?",
        "lanes.slow (in ",
        "relays[1].port (in ",
        "\"maybe\" is not one of starttls, implicit, plain",
        "relays[1].password_file (in ",
        "relays[2].password (in ",
        "relays[1].host (in ",
        "did you mean host?",
        "ADMIN_ADDR: \"x\" is not an IP address",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
}

#[test]
fn one_relay_under_settings_and_a_list_contradict_each_other() {
    let text = "[settings]\nsmtp_host = \"a.example\"\n[[relays]]\nhost = \"b.example\"";
    let faults = load_file(text, &[], &["SMTP_HOST"]).expect_err("faults");
    assert_eq!(labels(&faults), ["relays"]);
    let text = "[[relays]]\nhost = \"b.example\"\n[[relays]]\nhost = \"b.example\"";
    let faults = load_file(text, &[], &["SMTP_HOST"]).expect_err("faults");
    assert_eq!(labels(&faults), ["relays[2].name"]);
}

#[test]
fn a_file_that_is_not_toml_is_told_by_its_line_and_hides_what_may_stand_in_it() {
    let faults = load_file("[settings]\nsmtp_password = \"toml-secret\n", &[("SMTP_PORT", "x")], &["SMTP_HOST"]);
    let faults = faults.expect_err("faults");
    assert_eq!(labels(&faults), ["--config", "SMTP_PORT"]);
    let text = format!("{faults} {faults:?}");
    assert!(text.contains("is not TOML, line 2") && !text.contains("toml-secret"), "{text}");

    let absent = Config::load(&environment(&[("POSTRIDER_CONFIG", "/nonexistent/postrider.toml")]), None);
    assert_eq!(labels(&absent.expect_err("faults")), ["POSTRIDER_CONFIG"]);
}

#[test]
fn names_that_look_like_settings_are_warned_of() {
    let config = load(&[("EMAIL_EVENT", "all"), ("SMTP_PASSWD", "private"), ("PATH", "/bin"), ("OTEL_X", "y")]);
    let warnings = config.expect("valid").warnings;
    assert_eq!(
        warnings,
        [
            "EMAIL_EVENT is not a setting; did you mean EMAIL_EVENTS?",
            "SMTP_PASSWD is not a setting; did you mean SMTP_PASSWORD?"
        ]
    );
}
