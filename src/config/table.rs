//! All settings as data: the one place that knows their names and defaults.
//!
//! Invariant: what is read is listed here, and what is listed here is read. Defaults pass through the same parsers
//! as what people write.

use super::{
    Group::{
        Attachments, Broker, Database, Feedback, Mail, Manners, Process, Relay, Retention, Rules, Sidecar, Telemetry,
    },
    Setting,
};

const PREFETCH: &str = "1 to 2000, at least the lane's connections";
const LADDER: &str = "1 to 12 rising durations from 100ms to 24h (units ms, s, m, h, d), comma-separated";
const CONNECTIONS: &str = "1 to 500, at most the lane's prefetch";
const AGE_MAX: &str = "a duration from 1s to 7d (units ms, s, m, h, d)";
const RATE_LIMIT: &str = "unlimited, or a number a day or week such as 1/day or 3/week";
const CA_FILE: &str = "the path of a PEM file";
const OTLP_URL: &str = "an http:// or https:// URL";
const PROXIES: &str = "IP addresses, or networks such as 10.0.0.0/8, comma-separated";
const ADDRESS: &str = "an e-mail address, without a display name";

/// Every setting, in the order of `.env.example`.
pub const SETTINGS: &[Setting] = &[
    Setting::required(Broker, "AMQP_URL", "amqp://postrider:change-me@localhost:5672/%2f")
        .meaning("Where RabbitMQ is, with user, password and virtual host.")
        .accepts("an amqp:// or amqps:// URL, special characters percent-encoded")
        .private(),
    Setting::optional(Broker, "AMQP_CA_FILE", "/etc/postrider/rabbitmq-ca.pem")
        .meaning("Certificates to trust besides the system's, for amqps.")
        .accepts(CA_FILE),
    Setting::optional(Broker, "AMQP_CLIENT_CERT_FILE", "/etc/postrider/rabbitmq-client.pem")
        .meaning("Our certificate for an amqps broker that wants one; with ?auth_mechanism=external in AMQP_URL it stands for user and password.")
        .accepts("the path of a PEM file, together with AMQP_CLIENT_KEY_FILE"),
    Setting::optional(Broker, "AMQP_CLIENT_KEY_FILE", "/etc/postrider/rabbitmq-client.key")
        .meaning("The key of AMQP_CLIENT_CERT_FILE.")
        .accepts("the path of a PEM file without a passphrase"),
    Setting::preset(Broker, "AMQP_QUEUE_TYPE", "quorum")
        .meaning("What the queues of lanes, dead letters and unrouted messages are: replicated, or with strict priorities on every broker.")
        .accepts("quorum or classic"),
    Setting::preset(Broker, "AMQP_TOPOLOGY", "declare")
        .meaning("Whether exchanges and queues are declared, only checked, or trusted to be there.")
        .accepts("declare, verify or none"),
    Setting::preset(Broker, "EMAIL_PREFETCH_FAST", "32")
        .meaning("Deliveries that the fast lane holds unacknowledged at once.")
        .accepts(PREFETCH),
    Setting::preset(Broker, "EMAIL_PREFETCH_STANDARD", "64")
        .meaning("Deliveries that the standard lane holds unacknowledged at once.")
        .accepts(PREFETCH),
    Setting::preset(Broker, "EMAIL_PREFETCH_BULK", "64")
        .meaning("Deliveries that the bulk lane holds unacknowledged at once.")
        .accepts(PREFETCH),
    Setting::preset(Broker, "EMAIL_LADDER_FAST", "1s,5s,20s,60s")
        .meaning("Delays before the second, third ... try in the fast lane.")
        .accepts(LADDER),
    Setting::preset(Broker, "EMAIL_LADDER_STANDARD", "10s,5m,30m,2h")
        .meaning("Delays before the second, third ... try in the standard lane.")
        .accepts(LADDER),
    Setting::preset(Broker, "EMAIL_LADDER_BULK", "1m,15m,2h,6h")
        .meaning("Delays before the second, third ... try in the bulk lane.")
        .accepts(LADDER),
    Setting::preset(Broker, "DEAD_LETTER_ARCHIVE", "on")
        .meaning("Whether dead letters are moved into the database, or left in the queue for other tools.")
        .accepts("on or off"),
    Setting::required(Database, "DATABASE_URL", "postgres://postrider:change-me@localhost:5432/postrider")
        .meaning("Where PostgreSQL is, with user, password and database; beyond this machine with ?sslmode=verify-full, and sslrootcert, sslcert and sslkey as libpq has them.")
        .accepts("a postgres:// or postgresql:// URL, special characters percent-encoded")
        .private(),
    Setting::preset(Database, "DATABASE_CONNECTIONS_MAX", "10")
        .meaning("Connections to the database, but for the fast lane's, and one each for the outbox, for listening and for retention.")
        .accepts("2 to 200"),
    Setting::preset(Database, "DATABASE_FAST_CONNECTIONS_MAX", "3")
        .meaning("Connections to the database kept for the fast lane.")
        .accepts("1 to 50"),
    Setting::required(Database, "EMAIL_HASH_KEY", "")
        .meaning("Keys the hash that stands for an address; never change it, suppressions would no longer match.")
        .accepts("at least 32 characters (make one with: openssl rand -hex 32)")
        .private(),
    Setting::required(Relay, "SMTP_HOST", "mail.rgz.bj")
        .meaning("The relay's host name, unless the settings file names relays.")
        .accepts("a host name or address, without scheme and port"),
    Setting::preset(Relay, "SMTP_PORT", "587").meaning("The relay's port.").accepts("1 to 65535"),
    Setting::preset(Relay, "SMTP_USE_TLS", "true")
        .meaning("Whether the connection is encrypted, by STARTTLS or on port 465 from the first byte; false is plain.")
        .accepts("true or false"),
    Setting::optional(Relay, "SMTP_CA_FILE", "/etc/postrider/relay-ca.pem")
        .meaning("Certificates to trust besides the system's, for the relay.")
        .accepts(CA_FILE),
    Setting::optional(Relay, "SMTP_USER", "noreply@rgz.bj")
        .meaning("User at the relay, together with SMTP_PASSWORD.")
        .accepts("a user name")
        .private(),
    Setting::optional(Relay, "SMTP_PASSWORD", "your_smtp_password")
        .meaning("Password at the relay, together with SMTP_USER.")
        .accepts("a password")
        .private(),
    Setting::optional(Relay, "SMTP_HELO_NAME", "postrider.rgz.bj")
        .meaning("What EHLO says; by default the machine's host name.")
        .accepts("a host name, or an address in brackets such as [192.0.2.1]"),
    Setting::preset(Relay, "SMTP_TIMEOUT_SECONDS", "30")
        .meaning("Limit of each step of the dialogue but the reply to the final dot.")
        .accepts("1 to 600 seconds"),
    Setting::preset(Relay, "SMTP_DOT_TIMEOUT_SECONDS", "600")
        .meaning("Limit of the reply to the final dot; impatience here makes duplicates.")
        .accepts("1 to 3600 seconds"),
    Setting::preset(Relay, "SMTP_CONNECTIONS_FAST", "4")
        .meaning("Connections that the fast lane opens at most, for each relay.")
        .accepts(CONNECTIONS),
    Setting::preset(Relay, "SMTP_CONNECTIONS_STANDARD", "8")
        .meaning("Connections that the standard lane opens at most, for each relay.")
        .accepts(CONNECTIONS),
    Setting::preset(Relay, "SMTP_CONNECTIONS_BULK", "4")
        .meaning("Connections that the bulk lane opens at most, for each relay.")
        .accepts(CONNECTIONS),
    Setting::preset(Relay, "SMTP_MAILS_PER_CONNECTION", "100")
        .meaning("Mails after which a connection is retired.")
        .accepts("1 to 10000"),
    Setting::preset(Relay, "SMTP_IDLE_SECONDS", "30")
        .meaning("A connection idle for longer is closed, not reused.")
        .accepts("1 to 3600 seconds"),
    Setting::preset(Relay, "SMTP_WARM_CONNECTIONS_FAST", "1")
        .meaning("Connections of the fast lane that are kept open, though idle, at the first relay; 0: none.")
        .accepts("0 to 500; SMTP_CONNECTIONS_FAST is the limit all the same"),
    Setting::required(Mail, "SMTP_FROM_EMAIL", "noreply@rgz.bj")
        .meaning("Sender of every mail, also of the envelope.")
        .accepts(ADDRESS)
        .private(),
    Setting::optional(Mail, "SMTP_FROM_NAME", "RGZ Notifications")
        .meaning("Name shown beside the sender.")
        .accepts("up to 100 printable characters"),
    Setting::optional(Mail, "SMTP_REPLY_TO", "support@rgz.bj").meaning("Where answers go.").accepts(ADDRESS).private(),
    Setting::optional(Mail, "EMAIL_MESSAGE_ID_DOMAIN", "rgz.bj")
        .meaning("Right side of Message-ID; by default the domain of SMTP_FROM_EMAIL.")
        .accepts("a domain name with a dot"),
    Setting::optional(Mail, "EMAIL_SUPPORT_EMAIL", "support@rgz.bj")
        .meaning("Support address shown in mails; its line goes when unset.")
        .accepts(ADDRESS)
        .private(),
    Setting::optional(Mail, "EMAIL_SUPPORT_PHONE", "+229 01 00 00 00 00")
        .meaning("Support phone shown in mails; its line goes when unset.")
        .accepts("up to 40 digits, spaces and + - . ( )")
        .private(),
    Setting::preset(Mail, "EMAIL_TIMEZONE", "Africa/Porto-Novo")
        .meaning("Time zone of dates in mails and of calendar days in rate limits.")
        .accepts("a name of the IANA time zone database"),
    Setting::preset(Mail, "EMAIL_TEMPLATES_DIR", "templates")
        .meaning("Folder of the templates.")
        .accepts("the path of a folder"),
    Setting::optional(Manners, "EMAIL_PUBLIC_URL", "https://mail.rgz.bj")
        .meaning("Where people reach WEBHOOK_ADDR, for the links to unsubscribe; without it no marketing mail is sent.")
        .accepts("an https:// URL without query, at most 200 characters, together with WEBHOOK_ADDR"),
    Setting::optional(Manners, "DKIM_KEY_FILE", "/etc/postrider/dkim.pem")
        .meaning("Private key that signs every mail, RSA or Ed25519; several keys are listed in the settings file.")
        .accepts("the path of a PEM file (make one with: openssl genrsa -out FILE 2048), together with DKIM_SELECTOR"),
    Setting::optional(Manners, "DKIM_SELECTOR", "postrider1")
        .meaning("The name that the public key is published under, together with DKIM_KEY_FILE.")
        .accepts("labels of letters, digits and -, joined by dots"),
    Setting::optional(Manners, "DKIM_DOMAIN", "rgz.bj")
        .meaning("The domain that signs; by default the domain of SMTP_FROM_EMAIL.")
        .accepts("the domain of SMTP_FROM_EMAIL, or one above it"),
    Setting::optional(Manners, "EMAIL_LIST_ID_DOMAIN", "rgz.bj")
        .meaning("Right side of List-Id in marketing mails; by default the domain of SMTP_FROM_EMAIL.")
        .accepts("a domain name with a dot"),
    Setting::optional(Manners, "EMAIL_FEEDBACK_SENDER_ID", "rgzaccess")
        .meaning("Last part of the header Feedback-ID, which tells Gmail's statistics mails apart; not with Amazon SES, which writes its own.")
        .accepts("5 to 15 letters, digits, - and _"),
    Setting::optional(Manners, "SES_CONFIGURATION_SET", "postrider")
        .meaning("Amazon SES' configuration set for every mail.")
        .accepts("up to 64 letters, digits, - and _"),
    Setting::optional(Manners, "SES_MESSAGE_TAGS", "template,source,environment=production")
        .meaning("Tags of every mail for Amazon SES' statistics.")
        .accepts("up to 10 of template, source, category, lane, and name=value of letters, digits, - and _, comma-separated"),
    Setting::preset(Attachments, "EMAIL_ALLOWED_ATTACHMENT_TYPES", "pdf,png,jpg,json,csv")
        .meaning("Types of files that may be attached.")
        .accepts("some of pdf, png, jpg (or jpeg), json, csv, comma-separated"),
    Setting::preset(Attachments, "EMAIL_MAX_ATTACHMENT_SIZE_MB", "10")
        .meaning("Largest attachment, in units of 1024 x 1024 bytes.")
        .accepts("1 to 100"),
    Setting::optional(Attachments, "EMAIL_MAX_ATTACHMENTS_TOTAL_MB", "25")
        .meaning("Largest sum of one mail's attachments; by default 25, or one attachment's limit where that is more.")
        .accepts("1 to 200, at least EMAIL_MAX_ATTACHMENT_SIZE_MB"),
    Setting::optional(Attachments, "ATTACHMENT_HTTPS_HOSTS", "files.rgz.bj")
        .meaning("Hosts that attachments may be fetched from by https:// references; unset: none.")
        .accepts("host names or addresses, with a port where it is not 443, comma-separated"),
    Setting::optional(Attachments, "ATTACHMENT_S3_BUCKETS", "rgz-documents")
        .meaning("Buckets that attachments may be fetched from by s3:// references; unset: none.")
        .accepts("names of buckets, comma-separated"),
    Setting::optional(Attachments, "ATTACHMENT_FOLDER", "/srv/documents")
        .meaning("Folder that attachments may be read from by file:// references; unset: none.")
        .accepts("the absolute path of a folder that is there"),
    Setting::optional(Attachments, "ATTACHMENT_CA_FILE", "/etc/postrider/files-ca.pem")
        .meaning("Certificates to trust besides the system's, for https:// references and for S3.")
        .accepts(CA_FILE),
    Setting::preset(Attachments, "ATTACHMENT_FETCH_TIMEOUT_SECONDS", "30")
        .meaning("How long fetching one attachment may take; then the mail is tried again later.")
        .accepts("1 to 300 seconds"),
    Setting::preset(Attachments, "ATTACHMENT_FETCHES_MAX", "8")
        .meaning("Attachments fetched at once, in the fast lane and in the others together.")
        .accepts("1 to 100"),
    Setting::preset(Attachments, "EMAIL_ATTACHMENT_STORE", "postgres")
        .meaning("Where the bytes of sent attachments are kept; what was kept elsewhere before stays readable there.")
        .accepts("postgres, s3://bucket/prefix, or file:/// and the absolute path of a folder that is there"),
    Setting::preset(Attachments, "AWS_REGION", "us-east-1").meaning("Region of the buckets.").accepts("a name such as eu-west-1"),
    Setting::optional(Attachments, "AWS_ENDPOINT_URL_S3", "https://minio.rgz.bj:9000")
        .meaning("Where S3 is, if it is not Amazon's; buckets are the first part of the path there.")
        .accepts("an https:// or http:// URL without a path"),
    Setting::optional(Attachments, "AWS_ACCESS_KEY_ID", "")
        .meaning("Key for S3, together with AWS_SECRET_ACCESS_KEY; unset: the role of the machine, pod or task.")
        .accepts("an access key id")
        .private(),
    Setting::optional(Attachments, "AWS_SECRET_ACCESS_KEY", "")
        .meaning("The secret of AWS_ACCESS_KEY_ID.")
        .accepts("a secret access key")
        .private(),
    Setting::optional(Attachments, "AWS_SESSION_TOKEN", "")
        .meaning("Of temporary keys, together with AWS_ACCESS_KEY_ID.")
        .accepts("a session token")
        .private(),
    Setting::preset(Rules, "SMTP_RETRY_MAX_ATTEMPTS", "3")
        .meaning("Tries in all of a mail whose template names no number.")
        .accepts("1 to 20"),
    Setting::preset(Rules, "EMAIL_P0_SOURCES", "incident")
        .meaning("Sources that may use P0; the mails of others travel as P1.")
        .accepts("names of lower-case letters, digits, - and _, comma-separated"),
    Setting::preset(Rules, "EMAIL_RATE_LIMIT_TRANSACTIONAL", "unlimited")
        .meaning("Transactional mails to one person.")
        .accepts(RATE_LIMIT),
    Setting::preset(Rules, "EMAIL_RATE_LIMIT_MARKETING", "1/day")
        .meaning("Marketing mails to one person.")
        .accepts(RATE_LIMIT),
    Setting::preset(Rules, "EMAIL_AGE_MAX_FAST", "1h")
        .meaning("Mails of the fast lane older than this are not tried again.")
        .accepts(AGE_MAX),
    Setting::preset(Rules, "EMAIL_AGE_MAX_STANDARD", "24h")
        .meaning("Mails of the standard lane older than this are not tried again.")
        .accepts(AGE_MAX),
    Setting::preset(Rules, "EMAIL_AGE_MAX_BULK", "24h")
        .meaning("Mails of the bulk lane older than this are not tried again.")
        .accepts(AGE_MAX),
    Setting::preset(Rules, "EMAIL_MAX_NOT_BEFORE_DAYS", "30")
        .meaning("Furthest not_before that a request may ask for.")
        .accepts("0 to 365 days"),
    Setting::preset(Rules, "EMAIL_UNKNOWN_WAIT_SECONDS", "60")
        .meaning("How long the relay's feedback may settle an unknown outcome; 0 for P0 and without SNS_TOPIC_ARNS.")
        .accepts("0 to 3600 seconds"),
    Setting::preset(Rules, "EMAIL_LEASE_SECONDS", "30")
        .meaning("How long a daemon that stopped keeps the mails it had claimed.")
        .accepts("1 to 600 seconds, from 10 on in production"),
    Setting::preset(Rules, "EMAIL_EVENTS", "final")
        .meaning("Which events producers get on the exchange email.events: none, what is final, or every step.")
        .accepts("off, final or all"),
    Setting::preset(Retention, "EMAIL_AUDIT_RETENTION_DAYS", "365")
        .meaning("Days after which records are deleted.")
        .accepts("1 to 3650 days, more than EMAIL_MAX_NOT_BEFORE_DAYS plus the longest EMAIL_AGE_MAX"),
    Setting::preset(Retention, "EMAIL_AUTO_ANONYMIZE_AFTER_DAYS", "90")
        .meaning("Days after which the person is removed from the records.")
        .accepts("1 to 3650 days, at most EMAIL_AUDIT_RETENTION_DAYS"),
    Setting::preset(Retention, "EMAIL_RETENTION_EVERY", "1h")
        .meaning("How often daemons look for what is to be anonymised or deleted; one of them at a time does it.")
        .accepts("a duration from 1s to 24h (units ms, s, m, h, d)"),
    Setting::preset(Sidecar, "ADMIN_ADDR", "127.0.0.1:8025")
        .meaning("Where operators reach the admin API and pages.")
        .accepts("an IP address and a port"),
    Setting::optional(Sidecar, "WEBHOOK_ADDR", "0.0.0.0:8026")
        .meaning("The public listener, for Amazon SNS (SNS_TOPIC_ARNS) and for links to unsubscribe (EMAIL_PUBLIC_URL); unset, or without either: there is none.")
        .accepts("an IP address and a port, not ADMIN_ADDR's"),
    Setting::optional(Sidecar, "ADMIN_TOKENS", "")
        .meaning("Who may use the admin API; unset: nobody.")
        .accepts(
            "name:role:token, comma-separated; names unique, of a-z 0-9 -; roles viewer, operator, admin; \
             tokens unique, at least 16 visible characters (make one with: openssl rand -hex 24)",
        )
        .private(),
    Setting::optional(Sidecar, "ADMIN_HOSTS", "postrider.rgz.bj")
        .meaning("Names that browsers and programs reach the admin listener by, besides localhost and addresses; others are refused.")
        .accepts("host names without port, comma-separated"),
    Setting::optional(Sidecar, "ADMIN_TRUSTED_PROXIES", "127.0.0.1,10.0.0.0/8")
        .meaning("Proxies before the admin listener, whose X-Forwarded-For and X-Forwarded-Proto are believed; unset: nobody's.")
        .accepts(PROXIES),
    Setting::preset(Sidecar, "ADMIN_CONNECTIONS_MAX", "128")
        .meaning("Connections to the admin listener at once.")
        .accepts("8 to 10000"),
    Setting::preset(Sidecar, "ADMIN_CONNECTIONS_PER_ADDRESS_MAX", "64")
        .meaning("The same from one address, unless it is a trusted proxy's.")
        .accepts("4 to 10000"),
    Setting::optional(Sidecar, "ADMIN_TLS_CERT_FILE", "/etc/postrider/admin.pem")
        .meaning("The admin listener's certificate and those that sign it, read again when it changes; unset: plain HTTP.")
        .accepts("the path of a PEM file, together with ADMIN_TLS_KEY_FILE"),
    Setting::optional(Sidecar, "ADMIN_TLS_KEY_FILE", "/etc/postrider/admin-key.pem")
        .meaning("The private key of ADMIN_TLS_CERT_FILE.")
        .accepts("the path of a PEM file"),
    Setting::optional(Sidecar, "ADMIN_TLS_CLIENT_CA_FILE", "/etc/postrider/operators-ca.pem")
        .meaning("Who signs the certificates that clients of the admin API and pages must show; /livez, /readyz and /metrics need none.")
        .accepts("the path of a PEM file, together with ADMIN_TLS_CERT_FILE"),
    Setting::optional(Sidecar, "WEBHOOK_TRUSTED_PROXIES", "10.0.0.0/8")
        .meaning("Proxies before the public listener, likewise; they may have all its connections.")
        .accepts(PROXIES),
    Setting::preset(Sidecar, "WEBHOOK_CONNECTIONS_MAX", "256")
        .meaning("Connections to the public listener at once.")
        .accepts("8 to 10000"),
    Setting::preset(Sidecar, "WEBHOOK_CONNECTIONS_PER_ADDRESS_MAX", "128")
        .meaning("The same from one address, unless it is a trusted proxy's.")
        .accepts("4 to 10000"),
    Setting::optional(Sidecar, "WEBHOOK_TLS_CERT_FILE", "/etc/postrider/public.pem")
        .meaning("The public listener's certificate, likewise; unset: plain HTTP, for a proxy that speaks https.")
        .accepts("the path of a PEM file, together with WEBHOOK_TLS_KEY_FILE"),
    Setting::optional(Sidecar, "WEBHOOK_TLS_KEY_FILE", "/etc/postrider/public-key.pem")
        .meaning("The private key of WEBHOOK_TLS_CERT_FILE.")
        .accepts("the path of a PEM file"),
    Setting::optional(Feedback, "SNS_TOPIC_ARNS", "arn:aws:sns:eu-west-1:123456789012:ses-events")
        .meaning("Topics whose messages are taken, together with WEBHOOK_ADDR; unset: nobody's.")
        .accepts("ARNs of standard topics, comma-separated"),
    Setting::preset(Feedback, "SNS_SIGNATURE_VERSION", "2")
        .meaning("The weakest signature that is taken: 2 (SHA-256, set on the topic), or also 1 (SHA-1, a topic's default).")
        .accepts("1 or 2"),
    Setting::preset(Feedback, "SNS_AGE_MAX", "2h")
        .meaning("How long ago a message may have been published; SNS repeats for an hour, a dead-letter queue keeps longer.")
        .accepts("a duration from 1h to 14d (units ms, s, m, h, d)"),
    Setting::optional(Feedback, "SNS_SIGNING_CERT_FILE", "/etc/postrider/sns-signing.pem")
        .meaning("The certificates that SNS signs with, for networks that cannot reach it; with it none is fetched.")
        .accepts(CA_FILE),
    Setting::optional(Feedback, "SNS_CA_FILE", "/etc/postrider/sns-ca.pem")
        .meaning("Certificates to trust besides the system's, for SNS and for what it signs with.")
        .accepts(CA_FILE),
    Setting::optional(Telemetry, "OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
        .meaning("Where an OpenTelemetry collector takes OTLP; unset: nothing is traced or pushed, and /metrics is all there is.")
        .accepts("an http:// or https:// URL, to which v1/traces and v1/metrics are added"),
    Setting::optional(Telemetry, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://localhost:4318/v1/traces")
        .meaning("The same for traces alone, as it stands.")
        .accepts(OTLP_URL),
    Setting::optional(Telemetry, "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://localhost:4318/v1/metrics")
        .meaning("The same for metrics alone, as it stands.")
        .accepts(OTLP_URL),
    Setting::preset(Telemetry, "OTEL_TRACES_EXPORTER", "otlp")
        .meaning("Whether traces are made where there is an endpoint.")
        .accepts("otlp or none"),
    Setting::preset(Telemetry, "OTEL_METRICS_EXPORTER", "otlp")
        .meaning("Whether metrics are pushed where there is an endpoint.")
        .accepts("otlp or none"),
    Setting::preset(Telemetry, "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        .meaning("How they are pushed.")
        .accepts("http/protobuf"),
    Setting::optional(Telemetry, "OTEL_EXPORTER_OTLP_HEADERS", "")
        .meaning("Sent with each export, such as the collector's token.")
        .accepts("name=value, comma-separated, values percent-encoded")
        .private(),
    Setting::preset(Telemetry, "OTEL_EXPORTER_OTLP_TIMEOUT", "10000")
        .meaning("Limit of one export, its repetitions included.")
        .accepts("100 to 60000 milliseconds"),
    Setting::preset(Telemetry, "OTEL_METRIC_EXPORT_INTERVAL", "60000")
        .meaning("Between two exports of metrics.")
        .accepts("100 to 3600000 milliseconds"),
    Setting::preset(Telemetry, "OTEL_SERVICE_NAME", "postrider")
        .meaning("What traces and metrics call this daemon.")
        .accepts("up to 100 printable characters"),
    Setting::optional(Telemetry, "OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=production")
        .meaning("What else traces and metrics say of this daemon.")
        .accepts("name=value, comma-separated, values percent-encoded"),
    Setting::preset(Telemetry, "OTEL_TRACES_SAMPLER", "parentbased_always_on")
        .meaning("Which traces are kept; parentbased: as the producer decided, where its message says so.")
        .accepts(
            "always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off or parentbased_traceidratio",
        ),
    Setting::preset(Telemetry, "OTEL_TRACES_SAMPLER_ARG", "1.0")
        .meaning("Part of the traces that a sampler by ratio keeps.")
        .accepts("0 to 1"),
    Setting::preset(Telemetry, "OTEL_SDK_DISABLED", "false")
        .meaning("Switches all of this off, whatever else is set.")
        .accepts("true or false"),
    Setting::preset(Process, "LOG_FORMAT", "json")
        .meaning("Shape of the log: an object a line, or text for people.")
        .accepts("json or text"),
    Setting::preset(Process, "LOG_LEVEL", "info")
        .meaning("What is logged.")
        .accepts("trace, debug, info, warn, error or off, and target=level for parts, comma-separated"),
    Setting::preset(Process, "SHUTDOWN_GRACE_SECONDS", "60")
        .meaning("How long mails on the wire may take to finish after SIGTERM.")
        .accepts("1 to 3600 seconds"),
    Setting::preset(Process, "POSTRIDER_CORE_DUMPS", "off")
        .meaning("Whether a process that dies may leave its memory on the disk, secrets and mails in it, and a debugger may look; only here, not in the settings file.")
        .accepts("on or off"),
    Setting::optional(Process, "POSTRIDER_CONFIG", "/etc/postrider/postrider.toml")
        .meaning("The settings file, when --config names none.")
        .accepts("the path of a TOML file"),
];
