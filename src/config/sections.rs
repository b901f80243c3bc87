//! Each part of the settings, read as a whole; and what must hold between parts.
//!
//! Invariant: everything in a part is read before anything is given up, so that all faults come at once.

use std::{path::PathBuf, time::Duration};

use secrecy::SecretString;

use super::{
    BrokerConfig, BrokerIdentity, Config, EventsMode, Faults, HeadersConfig, HttpConfig, LogConfig, LogFormat,
    MailConfig, PipelineConfig, QueueType, Settings, SnsConfig, StoreConfig, TopologyMode,
    attachments::{attachments, total_max},
    dkim::dkim,
    listeners::http,
    parse,
    read::{Reader, Recorded, lane_name},
    relays::smtp,
    telemetry::telemetry,
};
use crate::{email::Lane, feedback::sns::SignatureVersion};

/// The least lease that survives a database that is busy for a moment.
const LEASE_SOUND: Duration = Duration::from_secs(10);

impl Settings {
    /// All of them: what the daemon needs.
    ///
    /// # Errors
    /// All that is missing or wrong, at once.
    pub fn config(&self) -> Result<Config, Faults> {
        let mut reader = Reader::new(self);
        let config = config(&mut reader);
        reader.finish(config)
    }

    /// What publishing and the broker's checks need.
    ///
    /// # Errors
    /// All that is missing or wrong in this part.
    pub fn broker(&self) -> Result<super::BrokerConfig, Faults> {
        self.part(broker)
    }

    /// What the database needs, with the key of the addresses' hash.
    ///
    /// # Errors
    /// All that is missing or wrong in this part.
    pub fn store(&self) -> Result<StoreConfig, Faults> {
        self.part(store)
    }

    /// Where the database is, for commands that touch no address.
    ///
    /// # Errors
    /// When it is missing or wrong.
    pub fn database_url(&self) -> Result<SecretString, Faults> {
        self.part(|r| r.read("DATABASE_URL", parse::database_url))
    }

    /// Which events changes make, for commands that change a mail's status.
    ///
    /// # Errors
    /// When it is wrong.
    pub fn events(&self) -> Result<EventsMode, Faults> {
        self.part(events)
    }

    /// What every mail carries.
    ///
    /// # Errors
    /// All that is missing or wrong in this part.
    pub fn mail(&self) -> Result<MailConfig, Faults> {
        self.part(mail)
    }

    /// The folder of the templates, for commands that only look at them.
    ///
    /// # Errors
    /// When it is wrong.
    pub fn templates_dir(&self) -> Result<PathBuf, Faults> {
        self.part(templates_dir)
    }

    /// The relays.
    ///
    /// # Errors
    /// All that is missing or wrong in this part.
    pub fn smtp(&self) -> Result<super::SmtpConfig, Faults> {
        self.part(smtp)
    }

    /// Limits and rules of the pipeline.
    ///
    /// # Errors
    /// All that is missing or wrong in this part.
    pub fn pipeline(&self) -> Result<PipelineConfig, Faults> {
        self.part(pipeline)
    }

    /// The sidecar's listeners.
    ///
    /// # Errors
    /// All that is missing or wrong in this part.
    pub fn http(&self) -> Result<HttpConfig, Faults> {
        self.part(http)
    }

    /// Where the admin listener is, and whether it speaks TLS, for commands that only ask it something.
    ///
    /// # Errors
    /// When the address is wrong.
    pub fn admin_listener(&self) -> Result<(std::net::SocketAddr, bool), Faults> {
        self.part(|r| {
            let addr = r.read("ADMIN_ADDR", parse::listen_address)?;
            Ok((addr, r.peek("ADMIN_TLS_CERT_FILE", parse::line(4096)).is_some()))
        })
    }

    /// How logs are written.
    ///
    /// # Errors
    /// All that is missing or wrong in this part.
    pub fn log(&self) -> Result<LogConfig, Faults> {
        self.part(log)
    }

    fn part<T>(&self, read: impl FnOnce(&mut Reader<'_>) -> Result<T, Recorded>) -> Result<T, Faults> {
        let mut reader = Reader::new(self);
        let value = read(&mut reader);
        reader.finish(value)
    }
}

fn config(r: &mut Reader<'_>) -> Result<Config, Recorded> {
    let broker = broker(r);
    let store = store(r);
    let smtp = smtp(r);
    let mail = mail(r);
    let dkim = dkim(r);
    let pipeline = pipeline(r);
    let http = http(r);
    let sns = sns(r);
    let log = log(r);
    let telemetry = telemetry(r);
    let core_dumps = r.read("POSTRIDER_CORE_DUMPS", parse::flag);
    check_lanes(r);
    let mut warnings = r.settings.unknown_variables();
    warnings.append(&mut r.warnings);
    Ok(Config {
        broker: broker?,
        store: store?,
        smtp: smtp?,
        mail: mail?,
        dkim: dkim?,
        pipeline: pipeline?,
        http: http?,
        sns: sns?,
        log: log?,
        telemetry: telemetry?,
        core_dumps: core_dumps?,
        warnings,
    })
}

fn broker(r: &mut Reader<'_>) -> Result<BrokerConfig, Recorded> {
    let url = r.read("AMQP_URL", parse::amqp_url);
    let ca_file = r.read_optional("AMQP_CA_FILE", parse::ca_file);
    let identity = broker_identity(r);
    let queue_type =
        r.read("AMQP_QUEUE_TYPE", parse::one_of(&[("quorum", QueueType::Quorum), ("classic", QueueType::Classic)]));
    let topology = r.read(
        "AMQP_TOPOLOGY",
        parse::one_of(&[
            ("declare", TopologyMode::Declare),
            ("verify", TopologyMode::Verify),
            ("none", TopologyMode::None),
        ]),
    );
    let prefetch = r.read_lanes("EMAIL_PREFETCH", parse::number(1..=2000));
    let ladders = r.read_lanes("EMAIL_LADDER", parse::ladder);
    let archive = r.read("DEAD_LETTER_ARCHIVE", parse::flag);
    Ok(BrokerConfig {
        url: url?,
        ca_file: ca_file?,
        identity: identity?,
        queue_type: queue_type?,
        topology: topology?,
        prefetch: prefetch?,
        ladders: ladders?,
        archive: archive?,
    })
}

/// The certificate that the broker may want to see, or take for a user and password.
fn broker_identity(r: &mut Reader<'_>) -> Result<Option<BrokerIdentity>, Recorded> {
    let certificate = r.read_optional("AMQP_CLIENT_CERT_FILE", parse::ca_file);
    let key = r.read_optional("AMQP_CLIENT_KEY_FILE", parse::key_file);
    let url = r.peek("AMQP_URL", parse::amqp_url);
    let (is_tls, is_external) = url.as_ref().map_or((true, false), parse::amqp_protection);
    match (certificate?, key?) {
        (Some(_), Some(_)) if !is_tls => {
            Err(r.fault("AMQP_CLIENT_CERT_FILE", "is set although AMQP_URL is amqp://, where nobody sees it"))
        }
        (Some(certificate), Some(key)) => Ok(Some(BrokerIdentity { certificate, key })),
        (Some(_), None) => Err(r.fault("AMQP_CLIENT_KEY_FILE", "is missing although AMQP_CLIENT_CERT_FILE is set")),
        (None, Some(_)) => Err(r.fault("AMQP_CLIENT_CERT_FILE", "is missing although AMQP_CLIENT_KEY_FILE is set")),
        (None, None) if is_external => Err(r.fault(
            "AMQP_CLIENT_CERT_FILE",
            "is missing although AMQP_URL says auth_mechanism=external, where the certificate is the user",
        )),
        (None, None) => Ok(None),
    }
}

fn store(r: &mut Reader<'_>) -> Result<StoreConfig, Recorded> {
    let url = r.read("DATABASE_URL", parse::database_url);
    let connections_max = r.read("DATABASE_CONNECTIONS_MAX", parse::number(2..=200));
    let fast_connections_max = r.read("DATABASE_FAST_CONNECTIONS_MAX", parse::number(1..=50));
    let hash_key = r.read("EMAIL_HASH_KEY", parse::hash_key);
    let events = events(r);
    let attachments = attachments(r);
    Ok(StoreConfig {
        url: url?,
        connections_max: connections_max?,
        fast_connections_max: fast_connections_max?,
        hash_key: hash_key?,
        events: events?,
        attachments: attachments?,
    })
}

fn events(r: &mut Reader<'_>) -> Result<EventsMode, Recorded> {
    r.read(
        "EMAIL_EVENTS",
        parse::one_of(&[("off", EventsMode::Off), ("final", EventsMode::Final), ("all", EventsMode::All)]),
    )
}

fn mail(r: &mut Reader<'_>) -> Result<MailConfig, Recorded> {
    let from = r.read("SMTP_FROM_EMAIL", parse::address);
    let from_name = r.read_optional("SMTP_FROM_NAME", parse::line(100));
    let reply_to = r.read_optional("SMTP_REPLY_TO", parse::address);
    let message_id_domain = r.read_optional("EMAIL_MESSAGE_ID_DOMAIN", parse::domain);
    let support_email = r.read_optional("EMAIL_SUPPORT_EMAIL", parse::address);
    let support_phone = r.read_optional("EMAIL_SUPPORT_PHONE", parse::phone);
    let timezone = r.read("EMAIL_TIMEZONE", parse::timezone);
    let templates_dir = templates_dir(r);
    let public_url = public_url(r);
    let list_id_domain = r.read_optional("EMAIL_LIST_ID_DOMAIN", parse::domain);
    let feedback_sender_id = r.read_optional("EMAIL_FEEDBACK_SENDER_ID", parse::word(5..=15));
    let ses_configuration_set = r.read_optional("SES_CONFIGURATION_SET", parse::word(1..=64));
    let ses_tags = r.read_optional("SES_MESSAGE_TAGS", parse::ses_tags);
    let from = from?;
    Ok(MailConfig {
        from_name: from_name?,
        reply_to: reply_to?,
        support_email: support_email?.map(|address| address.as_str().to_owned()),
        support_phone: support_phone?,
        timezone: timezone?,
        templates_dir: templates_dir?,
        public_url: public_url?,
        headers: HeadersConfig {
            list_id_domain: list_id_domain?.unwrap_or_else(|| from.domain().to_owned()),
            feedback_sender_id: feedback_sender_id?,
            ses_configuration_set: ses_configuration_set?,
            ses_tags: ses_tags?.unwrap_or_default(),
        },
        message_id_domain: message_id_domain?.unwrap_or_else(|| from.domain().to_owned()),
        from,
    })
}

fn public_url(r: &mut Reader<'_>) -> Result<Option<String>, Recorded> {
    let url = r.read_optional("EMAIL_PUBLIC_URL", parse::public_url)?;
    if url.is_some() && r.peek("WEBHOOK_ADDR", parse::listen_address).is_none() {
        return Err(r.fault("EMAIL_PUBLIC_URL", "is set without WEBHOOK_ADDR, where its links would arrive"));
    }
    Ok(url)
}

fn templates_dir(r: &mut Reader<'_>) -> Result<PathBuf, Recorded> {
    r.read("EMAIL_TEMPLATES_DIR", |text| Ok(PathBuf::from(text)))
}

fn pipeline(r: &mut Reader<'_>) -> Result<PipelineConfig, Recorded> {
    let attachment_types = r.read("EMAIL_ALLOWED_ATTACHMENT_TYPES", parse::attachment_types);
    let attachment_mb_max = r.read("EMAIL_MAX_ATTACHMENT_SIZE_MB", parse::number(1..=100_usize));
    let attachments_total_max = total_max(r, attachment_mb_max.as_ref().ok().copied());
    let tries_default = r.read("SMTP_RETRY_MAX_ATTEMPTS", parse::number(1..=20));
    let p0_sources = r.read("EMAIL_P0_SOURCES", parse::sources);
    let rate_limit_transactional = r.read("EMAIL_RATE_LIMIT_TRANSACTIONAL", parse::rate_limit);
    let rate_limit_marketing = r.read("EMAIL_RATE_LIMIT_MARKETING", parse::rate_limit);
    let age_max = r.read_lanes("EMAIL_AGE_MAX", parse::age_max);
    let not_before_max = r.read("EMAIL_MAX_NOT_BEFORE_DAYS", parse::days(0..=365));
    let unknown_wait = r.read("EMAIL_UNKNOWN_WAIT_SECONDS", parse::seconds(0..=3600));
    let lease = r.read("EMAIL_LEASE_SECONDS", parse::seconds(1..=600));
    let shutdown_grace = r.read("SHUTDOWN_GRACE_SECONDS", parse::seconds(1..=3600));
    let audit_retention = r.read("EMAIL_AUDIT_RETENTION_DAYS", parse::days(1..=3650));
    let anonymize_after = r.read("EMAIL_AUTO_ANONYMIZE_AFTER_DAYS", parse::days(1..=3650));
    let retention_every = r.read("EMAIL_RETENTION_EVERY", parse::retention_every);
    if r.peek("DEAD_LETTER_ARCHIVE", parse::flag) == Some(false) {
        r.warn("DEAD_LETTER_ARCHIVE is off: what lies in email.dead and email.unrouted holds persons, and is neither anonymised nor deleted");
    }

    if let (Ok(retention), Ok(not_before), Ok(age)) = (&audit_retention, &not_before_max, &age_max) {
        // A record that goes while its message still travels would let that message be sent twice.
        if *retention <= *not_before + age.fast.max(age.standard).max(age.bulk) {
            r.fault(
                "EMAIL_AUDIT_RETENTION_DAYS",
                "is not more than EMAIL_MAX_NOT_BEFORE_DAYS plus the longest EMAIL_AGE_MAX",
            );
        }
    }
    if let (Ok(anonymize), Ok(retention)) = (&anonymize_after, &audit_retention)
        && anonymize > retention
    {
        r.fault("EMAIL_AUTO_ANONYMIZE_AFTER_DAYS", "is more than EMAIL_AUDIT_RETENTION_DAYS");
    }
    if lease.is_ok_and(|lease| lease < LEASE_SOUND) {
        r.warn("EMAIL_LEASE_SECONDS is below 10: a slow moment of the database turns mails into unknown outcomes");
    }

    Ok(PipelineConfig {
        attachment_types: attachment_types?,
        attachment_bytes_max: attachment_mb_max? * 1024 * 1024,
        attachments_total_max: attachments_total_max?,
        p0_sources: p0_sources?,
        tries_default: tries_default?,
        age_max: age_max?,
        not_before_max: not_before_max?,
        unknown_wait: unknown_wait?,
        lease: lease?,
        shutdown_grace: shutdown_grace?,
        audit_retention: audit_retention?,
        anonymize_after: anonymize_after?,
        retention_every: retention_every?,
        rate_limit_transactional: rate_limit_transactional?,
        rate_limit_marketing: rate_limit_marketing?,
    })
}

fn sns(r: &mut Reader<'_>) -> Result<SnsConfig, Recorded> {
    let topics = r.read_optional("SNS_TOPIC_ARNS", parse::topic_arns);
    let signature_version =
        r.read("SNS_SIGNATURE_VERSION", parse::one_of(&[("1", SignatureVersion::V1), ("2", SignatureVersion::V2)]));
    let age_max = r.read("SNS_AGE_MAX", parse::message_age_max);
    let signing_cert_file = r.read_optional("SNS_SIGNING_CERT_FILE", parse::ca_file);
    let ca_file = r.read_optional("SNS_CA_FILE", parse::ca_file);
    let has_address = r.peek("WEBHOOK_ADDR", parse::listen_address).is_some();
    match &topics {
        Ok(Some(_)) if !has_address => {
            r.fault("SNS_TOPIC_ARNS", "is set without WEBHOOK_ADDR, where the topics' messages would arrive");
        }
        Ok(None) if has_address && r.peek("EMAIL_PUBLIC_URL", parse::public_url).is_none() => {
            r.warn(
                "WEBHOOK_ADDR is set without SNS_TOPIC_ARNS and EMAIL_PUBLIC_URL: there is nobody to be heard, so \
                 nothing listens there",
            );
        }
        _ => {}
    }
    Ok(SnsConfig {
        topics: topics?.unwrap_or_default(),
        signature_version: signature_version?,
        age_max: age_max?,
        signing_cert_file: signing_cert_file?,
        ca_file: ca_file?,
    })
}

fn log(r: &mut Reader<'_>) -> Result<LogConfig, Recorded> {
    let format = r.read("LOG_FORMAT", parse::one_of(&[("json", LogFormat::Json), ("text", LogFormat::Text)]));
    let filter = r.read("LOG_LEVEL", parse::log_filter);
    Ok(LogConfig { format: format?, filter: filter? })
}

/// A connection without a delivery to carry is one too many. Each side was judged by its own part already.
fn check_lanes(r: &mut Reader<'_>) {
    for lane in Lane::ALL {
        let (prefetch, connections) = (lane_name("EMAIL_PREFETCH", lane), lane_name("SMTP_CONNECTIONS", lane));
        let held = r.peek(&prefetch, parse::number(1..=2000_usize));
        let carried = r.peek(&connections, parse::number(1..=500_usize));
        if let (Some(held), Some(carried)) = (held, carried)
            && held < carried
        {
            r.fault(&prefetch, format!("is {held}, less than the {carried} of {connections}"));
        }
    }
}
