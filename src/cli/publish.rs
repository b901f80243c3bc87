//! `postrider publish`: requests from flags, JSON or a file of lines, each confirmed by the broker.

use std::{
    io::{BufRead, Read},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use clap::ArgGroup;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{Session, progress};
use crate::{
    broker::{Link, Outgoing, Publisher, link::Purpose, topology},
    email::{EmailAddress, Priority, attachment::FileType},
    publish::{self, Draft},
    templates::{parse_manifest, read_folder},
    wire,
};

/// Confirmations awaited side by side.
const AT_ONCE: usize = 32;
/// A progress bar for fewer than this would only flicker.
const PROGRESS_FROM: usize = 100;

#[derive(Debug, clap::Args)]
#[command(
    group = ArgGroup::new("what").required(true).args(["template", "request", "lines"]),
    after_help = "\
Examples:
  postrider publish --template support_ticket_created --to ada@example.bj \\
      --var ticket_number=4711 --var title='No signal' --var priority=P2 \\
      --var support_link=https://support.example.bj
  postrider publish --template billing_invoice_monthly --sample \\
      --to a@example.bj,b@example.bj --attach invoice.pdf
  postrider publish --template billing_invoice_monthly --sample --to a@example.bj \\
      --attach-ref s3://invoices/2026/F-4711.pdf,./F-4711.pdf
  postrider publish --request invoice.json   one request as JSON; - is stdin
  postrider publish --lines invoices.jsonl   many, one a line

A request that is published again with the same requestId is sent once.
Exit code 0: the broker has confirmed all. --json prints one object a line."
)]
pub(super) struct Args {
    /// Build a request for this template.
    #[arg(long, value_name = "KEY", requires = "to")]
    template: Option<String>,
    /// Addresses, separated by commas; may be given several times.
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    to: Vec<String>,
    /// A variable. JSON (45, true, ["a"]) is taken as such, anything else as text.
    #[arg(long = "var", value_name = "NAME=VALUE")]
    variables: Vec<String>,
    /// A JSON file of variables.
    #[arg(long, value_name = "FILE")]
    variables_file: Option<PathBuf>,
    /// Take variables that are not given from the template's sample in EMAIL_TEMPLATES_DIR.
    #[arg(long, requires = "template")]
    sample: bool,
    /// A file to attach; may be given several times.
    #[arg(long, value_name = "FILE")]
    attach: Vec<PathBuf>,
    /// A file to attach that the daemon fetches: its s3://, https:// or file:// address, then a comma and a local copy of it
    /// (which a file:// address needs not), or its size and SHA-256; may be given several times.
    #[arg(long, value_name = "URI[,FILE|,SIZE,SHA256]")]
    attach_ref: Vec<String>,
    /// Who asks (default: the template's category in EMAIL_TEMPLATES_DIR).
    #[arg(long)]
    source: Option<String>,
    /// P0 to P3 (default: the template's own in EMAIL_TEMPLATES_DIR).
    #[arg(long)]
    priority: Option<Priority>,
    /// What the reader understands, for instance en-GB (default: the template's own).
    #[arg(long, requires = "template")]
    locale: Option<String>,
    /// The idempotency key (default: a new one).
    #[arg(long, value_name = "UUID")]
    request_id: Option<Uuid>,
    /// A request in protobuf's JSON mapping, from a file or - for standard input.
    #[arg(long, value_name = "FILE")]
    request: Option<PathBuf>,
    /// Requests in protobuf's JSON mapping, one a line, from a file or - for standard input.
    #[arg(long, value_name = "FILE")]
    lines: Option<PathBuf>,
}

pub(super) async fn run(context: &Session, args: Args) -> anyhow::Result<ExitCode> {
    context.log_quietly();
    let requests = match (&args.request, &args.lines) {
        (Some(file), _) => vec![wire::from_json(&read(file)?).with_context(|| file.display().to_string())?],
        (None, Some(file)) => lines(file)?,
        (None, None) => vec![from_flags(context, &args)?],
    };
    let messages: Vec<(String, Outgoing)> = requests
        .into_iter()
        .enumerate()
        .map(|(index, mut request)| {
            if request.request_id.is_empty() {
                request.request_id = Uuid::new_v4().to_string();
            }
            let outgoing = publish::outgoing(&request, topology::REQUESTS)
                .with_context(|| format!("request {} of the input", index + 1))?;
            Ok((request.request_id, outgoing))
        })
        .collect::<anyhow::Result<_>>()?;

    let link = Arc::new(Link::new(&context.settings.broker()?, Purpose::Publish)?);
    // One attempt that fails at once beats one that waits for ever: somebody is looking.
    drop(link.connect_once().await.context("AMQP_URL")?);
    let publisher = Publisher::new(Arc::clone(&link), AT_ONCE);
    let bar = progress::bar(messages.len() as u64, messages.len() >= PROGRESS_FROM);
    let published: Vec<Value> = stream::iter(&messages)
        .map(|(id, outgoing)| {
            let (publisher, bar) = (&publisher, &bar);
            async move {
                publisher.publish(outgoing).await.map_err(|error| {
                    let hint = if error.is_missing_object() {
                        "the exchange is not there: has `postrider run` declared it in this virtual host?"
                    } else {
                        "publishing it again is safe"
                    };
                    anyhow!("request {id} was not confirmed; {hint} ({error})")
                })?;
                bar.inc(1);
                anyhow::Ok(json!({ "request_id": id, "routing_key": outgoing.routing_key }))
            }
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    bar.finish_and_clear();
    link.close().await;
    if context.is_json {
        for line in &published {
            outln!("{line}");
        }
    } else if let [one] = published.as_slice() {
        let id = text(one, "request_id");
        outln!("Published {id} as {}.", text(one, "routing_key"));
        outln!("What becomes of it: postrider messages --request {id}");
    } else {
        outln!("Published {} requests; the broker has confirmed them all.", published.len());
    }
    Ok(ExitCode::SUCCESS)
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    if file == Path::new("-") {
        let mut all = Vec::new();
        std::io::stdin().read_to_end(&mut all).context("standard input")?;
        return Ok(all);
    }
    std::fs::read(file).with_context(|| file.display().to_string())
}

fn lines(file: &Path) -> anyhow::Result<Vec<wire::EmailRequest>> {
    let all = read(file)?;
    let mut requests = Vec::new();
    for (index, line) in all.lines().enumerate() {
        let line = line.with_context(|| format!("line {}", index + 1))?;
        if !line.trim().is_empty() {
            let place = || format!("{}, line {} (nothing was published)", file.display(), index + 1);
            let request = wire::from_json(line.as_bytes()).with_context(place)?;
            requests.push(request);
        }
    }
    if requests.is_empty() {
        bail!("{} holds no requests", file.display());
    }
    Ok(requests)
}

fn from_flags(context: &Session, args: &Args) -> anyhow::Result<wire::EmailRequest> {
    let key = args.template.clone().unwrap_or_default();
    let mut variables = Map::new();
    let (mut category, mut usual, mut required) = (None, None, Vec::new());
    for address in &args.to {
        EmailAddress::parse(address).with_context(|| format!("--to {address}"))?;
    }
    if args.sample || args.source.is_none() || args.priority.is_none() {
        let folder = context.settings.templates_dir()?;
        let known = read_folder(&folder).map_err(|error| anyhow!("EMAIL_TEMPLATES_DIR: {error}"))?;
        let Some(source) = known.into_iter().find(|source| source.key == key) else {
            bail!("there is no template {key} in {}; give --source and --priority", folder.display());
        };
        let manifest = parse_manifest(&source.manifest_toml, 1)
            .map_err(|faults| anyhow!(faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))?;
        category = Some(manifest.category);
        usual = Some(manifest.priority);
        if args.sample {
            variables = source.sample;
        }
        required = manifest.required;
    }
    if let Some(file) = &args.variables_file {
        let given: Map<String, Value> =
            serde_json::from_slice(&read(file)?).with_context(|| file.display().to_string())?;
        variables.extend(given);
    }
    for variable in &args.variables {
        let (name, value) =
            variable.split_once('=').with_context(|| format!("--var {variable:?} is not NAME=VALUE"))?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
        variables.insert(name.to_owned(), value);
    }
    required.retain(|name| variables.get(name).is_none_or(Value::is_null));
    if !required.is_empty() {
        bail!("{key} needs {}: give --var, --variables-file or --sample", required.join(", "));
    }
    let draft = Draft {
        request_id: args.request_id.unwrap_or_else(Uuid::new_v4),
        source: args.source.clone().or(category).context("--source is missing")?,
        template_key: key,
        template_version: 0,
        to: args.to.clone(),
        variables,
        attachments: args.attach.iter().map(|file| attachment(file)).collect::<anyhow::Result<_>>()?,
        priority: args.priority.or(usual).context("--priority is missing")?,
        metadata: std::collections::HashMap::new(),
    };
    let mut request = draft.into_wire();
    request.locale = args.locale.clone().unwrap_or_default();
    for text in &args.attach_ref {
        request.attachments.push(reference(text)?);
    }
    Ok(request)
}

/// The attachment of `URI`, `URI,FILE` or `URI,SIZE,SHA256`.
fn reference(text: &str) -> anyhow::Result<wire::Attachment> {
    let (uri, size_bytes, sha256) = match announced(text) {
        Some(given) => given,
        None => {
            let (uri, copy) = match text.rsplit_once(',') {
                Some((uri, copy)) if Path::new(copy).is_file() => (uri, PathBuf::from(copy)),
                _ => {
                    let is_local = text.to_ascii_lowercase().starts_with("file:");
                    let path = url::Url::parse(text).ok().filter(|_| is_local).and_then(|u| u.to_file_path().ok());
                    (
                        text,
                        path.with_context(|| format!("--attach-ref {text}: give a local copy, or size and SHA-256"))?,
                    )
                }
            };
            let bytes = std::fs::read(&copy).with_context(|| copy.display().to_string())?;
            (uri, bytes.len() as u64, Sha256::digest(&bytes).to_vec())
        }
    };
    // What a browser would call it: the last part of the path, without a query.
    let path = url::Url::parse(uri).with_context(|| format!("--attach-ref {uri}"))?;
    let name = path.path().rsplit('/').next().unwrap_or_default();
    let name = percent_decoded(name);
    let content_type = content_type_of(&name)?;
    let reference = wire::Reference { uri: uri.to_owned(), size_bytes, sha256 };
    let content = Some(wire::AttachmentContent::Reference(reference));
    Ok(wire::Attachment { file_name: name, content_type, content, content_id: String::new() })
}

/// `URI,SIZE,SHA256`, if it is that.
fn announced(text: &str) -> Option<(&str, u64, Vec<u8>)> {
    let mut parts = text.rsplitn(3, ',');
    let (sha256, size, uri) = (parts.next()?, parts.next()?, parts.next()?);
    Some((uri, size.parse().ok()?, hex::decode(sha256).ok().filter(|hash| hash.len() == 32)?))
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let coded = tail.get(..2).filter(|_| *first == b'%').and_then(|code| hex::decode(code).ok());
        match coded.as_deref() {
            Some([byte]) => (bytes.push(*byte), rest = &tail[2..]),
            _ => (bytes.push(*first), rest = tail),
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn content_type_of(name: &str) -> anyhow::Result<String> {
    let kind = FileType::from_file_name(name)
        .with_context(|| format!("{name}: its ending is not one of pdf, png, jpg, json, csv"))?;
    Ok(kind.content_type().to_owned())
}

fn attachment(file: &Path) -> anyhow::Result<(String, String, Bytes)> {
    let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
    let name = file.file_name().and_then(|n| n.to_str()).with_context(|| format!("{}: no name", file.display()))?;
    Ok((name.to_owned(), content_type_of(name)?, bytes.into()))
}
