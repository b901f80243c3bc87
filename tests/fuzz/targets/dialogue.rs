//! A relay that answers anything, over a socket: several mails, one after the other and one behind the other.
//!
//! Holds: a mail counts as sent only when a 2xx stood in the place of the reply to its own final dot and was said after the dot
//! had come, and then the relay has all of it; one whose final dot was answered 2xx is sent or unknown, and never goes again as
//! if it had not; no mail is told another one's reply.

use std::{
    io::{self, Read},
    time::Duration,
};

use bytes::Bytes;
use postrider::{
    config::{Environment, Settings, SmtpConfig},
    email::{EmailAddress, Lane, Outcome},
    smtp::{OutgoingMail, Relays},
};
use proptest::{collection::vec, prelude::*, sample::select};
use socket2::{SockRef, Socket};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};

use crate::{
    change::changed_bytes,
    drive::{Came, Subject},
};

/// Connections that the relay takes in one dialogue; then nobody listens any more.
const CONNECTIONS_MAX: usize = 3;
/// Longest dialogue; none of them waits for anything.
const DIALOGUE_MAX: Duration = Duration::from_secs(30);

/// What the relay does when a reply is due.
#[derive(Debug, Clone)]
enum Answer {
    /// What a sound relay says.
    Sound,
    /// The same in several lines.
    Lines(u8),
    /// The same in two pieces.
    Pieces,
    /// Another code.
    Code(u16),
    /// A sound answer, and one more.
    Twice(u16),
    /// These bytes, whatever they are.
    Bytes(Vec<u8>),
    /// Nothing more.
    Close,
}

/// A dialogue.
#[derive(Debug, Clone)]
pub struct Plan {
    answers: Vec<Answer>,
    capabilities: Vec<&'static str>,
    mails: usize,
    together: bool,
}

/// The relay's side of it.
pub struct Dialogue {
    planted: bool,
    runtime: Runtime,
    config: SmtpConfig,
}

/// A mail's end, as the relay saw it.
#[derive(Debug, Clone)]
struct Seen {
    to: String,
    content: Vec<u8>,
    connection: usize,
    /// The places of the replies to MAIL, RCPT, DATA and the final dot among that connection's.
    places: [usize; 4],
}

impl Seen {
    /// The reply to the final dot of a mail that has a sender, a recipient and a go-ahead.
    fn verdict(&self, replies: &[Vec<(u16, String)>]) -> Option<u16> {
        let [sender, recipient, data, dot] =
            self.places.map(|place| replies[self.connection].get(place).map_or(0, |(code, _)| *code));
        ((200..300).contains(&sender) && (200..300).contains(&recipient) && data == 354).then_some(dot)
    }
}

/// A DATA that came.
#[derive(Debug)]
struct Begun {
    to: String,
    connection: usize,
    /// The place of its reply; the next one is that of the final dot.
    place: usize,
    /// Where in all that was heard its content begins.
    from: usize,
}

/// All that the relay saw and said.
#[derive(Debug, Default)]
struct Log {
    seen: Vec<Seen>,
    begun: Vec<Begun>,
    /// What was said on each connection.
    said: Vec<Vec<u8>>,
    /// What came on each, also what was never looked at.
    heard: Vec<Vec<u8>>,
    /// How much had come when each of the replies was begun.
    heard_before: Vec<Vec<usize>>,
    /// The connection that is open, to be heard out.
    open: Option<Socket>,
}

impl Log {
    /// Takes what has come, by asking the socket itself: what the runtime knows of it may be a moment old.
    fn listen(&mut self) {
        let (Some(mut socket), Some(heard)) = (self.open.as_ref(), self.heard.last_mut()) else { return };
        // It does not block. What breaks it, whoever reads next is told.
        let _ = socket.read_to_end(heard);
    }

    /// Whether the reply after the one to this DATA was said when all of this content, and its dot, had come.
    fn answers(&self, begun: &Begun, content: &[u8]) -> bool {
        let came = &self.heard[begun.connection][begun.from..];
        let Some(at) = came.windows(5).position(|part| part == b"\r\n.\r\n") else { return false };
        let when = self.heard_before[begun.connection].get(begun.place + 1);
        undotted(&came[..at + 2]) == content && when.is_some_and(|heard| *heard >= begun.from + at + 5)
    }
}

impl Dialogue {
    pub fn new(planted: bool) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let settings = [
            ("SMTP_HOST", "127.0.0.1"),
            ("SMTP_PORT", "25"),
            ("SMTP_USE_TLS", "false"),
            ("SMTP_HELO_NAME", "daemon.test"),
            ("SMTP_CONNECTIONS_STANDARD", "1"),
            ("SMTP_TIMEOUT_SECONDS", "20"),
            ("SMTP_DOT_TIMEOUT_SECONDS", "20"),
            ("SMTP_WARM_CONNECTIONS_FAST", "0"),
        ];
        let environment: Environment = settings.into_iter().collect();
        let config = Settings::read(&environment, None).smtp().expect("sound");
        Self { planted, runtime, config }
    }

    async fn play(&self, plan: &Plan) -> Result<Came, String> {
        // A listener of its own: nothing that was left of the last dialogue comes into this one.
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let mut config = self.config.clone();
        config.relays[0].port = listener.local_addr().expect("it is bound").port();
        let relays = Relays::new(&config).map_err(|error| error.to_string())?;
        let mut log = Log::default();
        let outcomes = {
            let sending = send_all(&relays, plan);
            let relaying = relay(&listener, plan, &mut log);
            tokio::pin!(sending);
            tokio::select! {
                outcomes = tokio::time::timeout(DIALOGUE_MAX, &mut sending) => outcomes.map_err(|_| "the dialogue has no end")?,
                never = relaying => never,
            }
        };
        log.listen();
        log.open = None;
        relays.close().await;
        let replies: Vec<Vec<(u16, String)>> = log.said.iter().map(|said| replies(said)).collect();
        let mut came = Came::Refused;
        for (number, outcome) in outcomes.into_iter().enumerate() {
            let Some(mut outcome) = outcome else { continue };
            if let Outcome::Deferred { reply: Some(reply), .. } = &outcome
                && self.planted
                && reply.code == 450
            {
                outcome = Outcome::Sent { reply: reply.clone() };
            }
            let seen: Vec<(&Seen, u16)> = log
                .seen
                .iter()
                .filter(|seen| seen.to == recipient(number))
                .filter_map(|seen| Some((seen, seen.verdict(&replies)?)))
                .collect();
            let was_taken = seen.iter().any(|(_, code)| (200..300).contains(code));
            holds(seen.len() <= 1, "a mail goes once")?;
            match &outcome {
                Outcome::Sent { reply } => {
                    came = Came::AllTheWay;
                    // The relay may take something else for the end of it, or for its beginning, if it was out of step
                    // itself. But what stood in the place of the answer was not there before the question.
                    let is_told = log.begun.iter().filter(|begun| begun.to == recipient(number)).any(|begun| {
                        let code = replies[begun.connection].get(begun.place + 1).map(|(code, _)| *code);
                        code == Some(reply.code) && log.answers(begun, &content(number))
                    });
                    holds(is_told && (200..300).contains(&reply.code), "sent only after a 2xx to its own final dot")?;
                    holds(seen.iter().all(|(seen, _)| seen.content == content(number)), "the relay has all of it")?;
                }
                Outcome::Unknown { .. } => {}
                Outcome::Deferred { .. } | Outcome::Rejected { .. } => {
                    holds(!was_taken, "what the relay took is not tried again")?;
                }
            }
            let told = match &outcome {
                Outcome::Sent { reply } => Some(reply),
                Outcome::Deferred { reply, .. } | Outcome::Rejected { reply, .. } => reply.as_ref(),
                Outcome::Unknown { .. } => None,
            };
            // Whatever this mail is told was said after its own envelope: our answers name whom they answer.
            if let Some(other) = told.and_then(|reply| reply.text.split("for-").nth(1)) {
                let whom: String = other.chars().take_while(char::is_ascii_digit).collect();
                holds(whom.is_empty() || whom == number.to_string(), "no mail is told another one's reply")?;
            }
            if let Some(reply) = told {
                holds(
                    !reply.text.contains(char::is_control) && reply.text.chars().count() <= 500,
                    "words that can be kept",
                )?;
                holds(!reply.text.contains(&recipient(number)), "nobody is named in a reply")?;
            }
        }
        Ok(came)
    }
}

async fn send_all(relays: &Relays, plan: &Plan) -> Vec<Option<Outcome>> {
    let send = |number: usize| async move {
        let place = relays.place_elsewhere(Lane::Standard, &[]).await?;
        let address = |text: &str| EmailAddress::parse(text).expect("an address");
        let mail =
            OutgoingMail::new(address("noreply@rgz.bj"), address(&recipient(number)), Bytes::from(content(number)));
        Some(place.send(mail).await.outcome())
    };
    if plan.together {
        return futures_util::future::join_all((0..plan.mails).map(send)).await;
    }
    let mut outcomes = Vec::new();
    for number in 0..plan.mails {
        outcomes.push(send(number).await);
    }
    outcomes
}

fn recipient(number: usize) -> String {
    format!("to-{number}@example.bj")
}

fn content(number: usize) -> Vec<u8> {
    format!(
        "Subject: {number}\r\n\r\nmail {number}\r\n.dots\r\n.\r\nMAIL FROM:<x@y.zz>\r\n{}",
        "x\r\n".repeat(number * 50)
    )
    .into_bytes()
}

/// Takes connections, and never ends by itself.
async fn relay(listener: &TcpListener, plan: &Plan, log: &mut Log) -> Vec<Option<Outcome>> {
    let mut answers = plan.answers.iter();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        if log.said.len() < CONNECTIONS_MAX {
            log.said.push(Vec::new());
            log.heard.push(Vec::new());
            log.heard_before.push(Vec::new());
            log.open = SockRef::from(&stream).try_clone().ok();
            // A socket that breaks ends the connection, as any relay would have it.
            let _ = converse(stream, plan, &mut answers, log).await;
            log.listen();
            log.open = None;
        }
    }
}

async fn converse(
    mut stream: TcpStream,
    plan: &Plan,
    answers: &mut std::slice::Iter<'_, Answer>,
    log: &mut Log,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let connection = log.said.len() - 1;
    // Where the next command begins, in all that was heard.
    let (mut from, mut commands, mut to) = (0, 0_usize, String::new());
    // Never answered: no reply has this place.
    let mut places = [usize::MAX; 4];
    let mut in_content = false;
    if !say(&mut stream, answers, "220 relay.test ready", "", log).await? {
        return Ok(());
    }
    loop {
        // A whole command, or a whole content.
        let end: &[u8] = if in_content { b"\r\n.\r\n" } else { b"\r\n" };
        let incoming = &log.heard[connection][from..];
        let empty = in_content && incoming.starts_with(b".\r\n");
        let found = if empty { Some(0) } else { incoming.windows(end.len()).position(|part| part == end) };
        let Some(at) = found else {
            stream.readable().await?;
            let mut piece = [0; 4096];
            match stream.try_read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(read) => log.heard[connection].extend_from_slice(&piece[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            continue;
        };
        let line = incoming[..if empty { 3 } else { at + end.len() }].to_vec();
        from += line.len();
        commands += 1;
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        let sound = if in_content {
            let whole = if empty { &[][..] } else { &line[..at + 2] };
            places[3] = commands;
            log.seen.push(Seen { to: to.clone(), content: undotted(whole), connection, places });
            places = [usize::MAX; 4];
            in_content = false;
            "250 2.0.0 taken".to_owned()
        } else if text.starts_with("EHLO") {
            let mut lines = vec!["relay.test"];
            lines.extend(&plan.capabilities);
            let last = lines.pop().unwrap_or_default();
            lines.iter().map(|line| format!("250-{line}\r\n")).collect::<String>() + &format!("250 {last}")
        } else if text.starts_with("MAIL FROM:<") {
            places = [commands, usize::MAX, usize::MAX, usize::MAX];
            "250 2.1.0 ok".to_owned()
        } else if let Some(path) = text.strip_prefix("RCPT TO:<") {
            places[1] = commands;
            path.split('>').next().unwrap_or_default().clone_into(&mut to);
            "250 2.1.5 ok".to_owned()
        } else if text == "DATA" {
            places[2] = commands;
            log.begun.push(Begun { to: to.clone(), connection, place: commands, from });
            let said = replies(&log.said[connection]);
            let is_ok = |place: usize| said.get(place).is_some_and(|(code, _)| (200..300).contains(code));
            if is_ok(places[0]) && is_ok(places[1]) { "354 go ahead" } else { "503 5.5.1 nobody to send it to" }
                .to_owned()
        } else if text == "QUIT" {
            "221 bye".to_owned()
        } else {
            "250 ok".to_owned()
        };
        let is_content = line.ends_with(b".\r\n") && places[0] == usize::MAX;
        let is_data = text == "DATA" && !is_content;
        let is_its_own = is_content || is_data || text.starts_with("RCPT");
        let mark =
            to.strip_prefix("to-").filter(|_| is_its_own).and_then(|to| to.split('@').next()).unwrap_or_default();
        let goes_on = say(&mut stream, answers, &sound, mark, log).await?;
        if is_data {
            let said = replies(&log.said[connection]);
            in_content = said.get(commands).is_some_and(|(code, _)| *code == 354);
        }
        if !goes_on || text == "QUIT" {
            return Ok(());
        }
    }
}

/// Answers as planned; false: the connection is to be closed.
async fn say(
    stream: &mut TcpStream,
    answers: &mut std::slice::Iter<'_, Answer>,
    sound: &str,
    mark: &str,
    log: &mut Log,
) -> io::Result<bool> {
    let marked = |line: &str| if mark.is_empty() { format!("{line}\r\n") } else { format!("{line} for-{mark};\r\n") };
    log.listen();
    let connection = log.said.len() - 1;
    let (whole, heard) = (marked(sound), log.heard[connection].len());
    let said = &mut log.said[connection];
    let before = replies(said).len();
    let pieces: Vec<Vec<u8>> = match answers.next().unwrap_or(&Answer::Sound) {
        Answer::Sound => vec![whole.into()],
        Answer::Lines(count) => {
            let more = format!("{}-more\r\n", &sound[..3]).repeat(usize::from(*count));
            vec![format!("{more}{whole}").into()]
        }
        Answer::Pieces => {
            let (one, other) = whole.as_bytes().split_at(whole.len() / 2);
            vec![one.to_vec(), other.to_vec()]
        }
        Answer::Code(code) => vec![marked(&format!("{code} {}", &sound.split(' ').nth(1).unwrap_or("x"))).into()],
        Answer::Twice(code) => vec![format!("{whole}{code} again\r\n").into()],
        Answer::Bytes(bytes) => vec![bytes.clone()],
        Answer::Close => return Ok(false),
    };
    // Noted first: whoever has read the last of it may end the dialogue.
    said.extend(pieces.concat());
    let after = replies(said).len();
    log.heard_before[connection].resize(after, heard);
    // Half a line, half a reply or none at all: the relay would be waited for.
    let goes_on = replies_are_whole(said) && after > before;
    for piece in pieces {
        stream.write_all(&piece).await?;
        tokio::task::yield_now().await;
    }
    Ok(goes_on)
}

/// The replies of a connection in order, by a reading of our own: up to where they make no sense.
fn replies(said: &[u8]) -> Vec<(u16, String)> {
    read_replies(said).0
}

fn replies_are_whole(said: &[u8]) -> bool {
    read_replies(said).1
}

fn read_replies(said: &[u8]) -> (Vec<(u16, String)>, bool) {
    let (mut all, mut open, mut rest) = (Vec::new(), None::<(u16, String)>, said);
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
        rest = &rest[end + 1..];
        let digits = line.get(..3).filter(|digits| digits.iter().all(u8::is_ascii_digit));
        let code = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u16>().ok());
        let Some(code) = code.filter(|code| (200..600).contains(code)) else { return (all, false) };
        let text = String::from_utf8_lossy(line.get(4..).unwrap_or_default()).into_owned();
        let whole = match open.take() {
            Some((of, _)) if of != code => return (all, false),
            Some((_, before)) => before + &text,
            None => text,
        };
        match line.get(3) {
            None | Some(b' ') => all.push((code, whole)),
            Some(b'-') => open = Some((code, whole)),
            Some(_) => return (all, false),
        }
    }
    (all, rest.is_empty() && open.is_none())
}

/// The content as it was before it travelled.
fn undotted(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len());
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        out.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
    }
    out
}

impl Subject for Dialogue {
    type Input = Plan;

    fn inputs(&self) -> BoxedStrategy<Plan> {
        let corpus = [
            "250 ok\r\n",
            "250-a\r\n250-b\r\n250 c\r\n",
            "354 go\r\n",
            "421 4.3.2 closing\r\n",
            "451 4.7.1 <to-0@example.bj> greylisted\r\n",
            "550 5.1.1 <to-1@example.bj>: no such user\r\n",
            "250 2.0.0 Ok: queued as 4XyZ\r\n",
        ];
        let corpus = corpus.iter().map(|line| line.as_bytes().to_vec()).collect();
        const CODES: &[u16] = &[
            200, 211, 250, 251, 252, 299, 300, 334, 354, 355, 400, 421, 450, 451, 452, 454, 500, 530, 535, 550, 552,
            554, 599,
        ];
        let code = prop_oneof![6 => select(CODES), 1 => 0_u16..1000];
        let answer = prop_oneof![
            24 => Just(Answer::Sound),
            2 => (1_u8..5).prop_map(Answer::Lines),
            2 => Just(Answer::Pieces),
            4 => code.clone().prop_map(Answer::Code),
            2 => code.prop_map(Answer::Twice),
            3 => changed_bytes(corpus, &["250", "354", "550", "-", " ", "\r\n", "\n", "\r"]).prop_map(Answer::Bytes),
            1 => Just(Answer::Close),
        ];
        const OFFERS: &[&str] = &[
            "PIPELINING",
            "8BITMIME",
            "SMTPUTF8",
            "SIZE",
            "SIZE 100000",
            "SIZE 10",
            "SIZE x",
            "STARTTLS",
            "AUTH PLAIN LOGIN",
        ];
        let offered = vec(select(OFFERS), 0..4);
        let capabilities = (any::<bool>(), offered).prop_map(|(pipelining, mut offered)| {
            if pipelining {
                offered.insert(0, "PIPELINING");
            }
            offered
        });
        (vec(answer, 0..24), capabilities, 1_usize..5, any::<bool>())
            .prop_map(|(answers, capabilities, mails, together)| Plan { answers, capabilities, mails, together })
            .boxed()
    }

    fn judge(&mut self, plan: &Plan) -> Result<Came, String> {
        self.runtime.block_on(self.play(plan))
    }
}

fn holds(is_so: bool, what: &str) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(format!("does not hold: {what}")) }
}
