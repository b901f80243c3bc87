//! One connection's dialogue (RFC 5321), with the script looking over its shoulder at every step.

mod speech;

use std::{io, sync::Arc, time::Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::BytesMut;
use postrider::email::Phase;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use super::{
    Shared,
    log::{GoAhead, ReceivedMail},
    script::Act,
};

trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// The dialogue is over: the relay or its peer hung up.
struct HungUp;

impl From<io::Error> for HungUp {
    fn from(_: io::Error) -> Self {
        Self
    }
}

/// Takes connections until it is aborted; what it has taken goes on by itself.
pub(super) async fn listen(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let cut = shared.connections.lock().expect("no test panics here").clone();
        let open = Open::new(&shared);
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            tokio::select! {
                () = cut.cancelled() => {}
                _ = serve(stream, shared, open) => {}
            }
        });
    }
}

/// Counts as an open connection for as long as it lives.
struct Open {
    shared: Arc<Shared>,
    connection: usize,
}

impl Open {
    fn new(shared: &Arc<Shared>) -> Self {
        let mut connection = 0;
        shared.log.send_modify(|log| {
            log.connections += 1;
            log.connections_open += 1;
            log.connections_open_max = log.connections_open_max.max(log.connections_open);
            connection = log.connections;
        });
        Self { shared: Arc::clone(shared), connection }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.log.send_modify(|log| log.connections_open -= 1);
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>, open: Open) -> Result<(), HungUp> {
    stream.set_nodelay(true)?;
    let mut wire: Box<dyn Wire> = Box::new(stream);
    if let Some(config) = &shared.offer.implicit_tls {
        wire = Box::new(TlsAcceptor::from(Arc::clone(config)).accept(wire).await?);
    }
    let mut dialogue = Dialogue {
        is_encrypted: shared.offer.implicit_tls.is_some(),
        connection: open.connection,
        shared,
        wire: Some(wire),
        incoming: BytesMut::new(),
        outgoing: Vec::new(),
        user: None,
        transaction: None,
        number: 0,
    };
    dialogue.answer(Phase::Greeting, "220 relay.test ESMTP").await?;
    loop {
        let line = dialogue.line().await?;
        if line.eq_ignore_ascii_case("QUIT") {
            // Whoever reads the 221 may connect again at once, and must find this one gone.
            drop(open);
            dialogue.say("221 2.0.0 bye");
            return dialogue.flush().await;
        }
        dialogue.command(&line).await?;
    }
}

struct Transaction {
    from: String,
    parameters: String,
    to: Vec<String>,
    begun_at: Instant,
}

struct Dialogue {
    shared: Arc<Shared>,
    connection: usize,
    /// Only gone for the moment of the TLS handshake.
    wire: Option<Box<dyn Wire>>,
    incoming: BytesMut,
    outgoing: Vec<u8>,
    is_encrypted: bool,
    user: Option<String>,
    transaction: Option<Transaction>,
    /// The transaction's number.
    number: usize,
}

impl Dialogue {
    async fn command(&mut self, line: &str) -> Result<(), HungUp> {
        let verb = line.split([' ', ':']).next().unwrap_or("").to_ascii_uppercase();
        let rest = line[verb.len()..].trim();
        match verb.as_str() {
            "EHLO" => self.ehlo().await,
            "STARTTLS" if self.shared.offer.starttls.is_some() && !self.is_encrypted => self.start_tls().await,
            "AUTH" if self.shared.offer.credentials.is_some() => self.auth(rest).await,
            "MAIL" => self.mail(rest).await,
            "RCPT" => self.rcpt(rest).await,
            "DATA" => self.data().await,
            "RSET" => {
                self.transaction = None;
                let scripted = self.shared.reset.lock().expect("no test panics here").clone();
                self.say(scripted.as_deref().unwrap_or("250 2.0.0 forgotten"));
                Ok(())
            }
            "NOOP" => {
                self.say("250 2.0.0 ok");
                Ok(())
            }
            _ => {
                self.say("502 5.5.1 not here");
                Ok(())
            }
        }
    }

    async fn ehlo(&mut self) -> Result<(), HungUp> {
        self.transaction = None;
        let offer = &self.shared.offer;
        let mut lines = vec!["relay.test greets you".to_owned(), "ENHANCEDSTATUSCODES".to_owned()];
        for (is_offered, name) in
            [(offer.pipelining, "PIPELINING"), (offer.eight_bit_mime, "8BITMIME"), (offer.smtputf8, "SMTPUTF8")]
        {
            lines.extend(is_offered.then(|| name.to_owned()));
        }
        lines.extend(offer.size.map(|max| format!("SIZE {max}")));
        lines.extend((offer.starttls.is_some() && !self.is_encrypted).then(|| "STARTTLS".to_owned()));
        if offer.credentials.is_some() && (self.is_encrypted || offer.starttls.is_none()) {
            lines.push(format!("AUTH {}", offer.mechanisms));
        }
        let last = lines.len() - 1;
        let text: Vec<_> = lines
            .iter()
            .enumerate()
            .map(|(i, line)| format!("250{}{line}", if i == last { ' ' } else { '-' }))
            .collect();
        self.answer(Phase::Ehlo, &text.join("\r\n")).await.map(drop)
    }

    async fn start_tls(&mut self) -> Result<(), HungUp> {
        if self.answer(Phase::StartTls, "220 2.0.0 go ahead").await? != 220 {
            return Ok(());
        }
        self.flush().await?;
        let (Some(config), Some(wire)) = (&self.shared.offer.starttls, self.wire.take()) else { return Err(HungUp) };
        self.wire = Some(Box::new(TlsAcceptor::from(Arc::clone(config)).accept(wire).await?));
        self.incoming.clear();
        self.is_encrypted = true;
        self.user = None;
        Ok(())
    }

    async fn auth(&mut self, rest: &str) -> Result<(), HungUp> {
        let decode = |text: &str| String::from_utf8_lossy(&BASE64.decode(text).unwrap_or_default()).into_owned();
        let (user, password) = match rest.split_once(' ') {
            Some(("PLAIN", response)) => {
                let response = decode(response);
                let mut parts = response.split('\0').skip(1).map(str::to_owned);
                (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
            }
            None if rest == "LOGIN" => {
                let mut answers = Vec::new();
                for challenge in ["Username:", "Password:"] {
                    self.say(&format!("334 {}", BASE64.encode(challenge)));
                    answers.push(decode(&self.line().await?));
                }
                (answers.remove(0), answers.remove(0))
            }
            _ => {
                self.say("504 5.5.4 unknown mechanism");
                return Ok(());
            }
        };
        let wanted = self.shared.offer.credentials.as_ref();
        let is_right = wanted.is_some_and(|(u, p)| *u == user && *p == password);
        let reply = if is_right { "235 2.7.0 welcome" } else { "535 5.7.8 bad credentials" };
        if self.answer(Phase::Auth, reply).await? == 235 {
            self.user = Some(user);
        }
        Ok(())
    }

    async fn mail(&mut self, rest: &str) -> Result<(), HungUp> {
        self.number = 0;
        let number = &mut self.number;
        self.shared.log.send_modify(|log| {
            log.transactions += 1;
            *number = log.transactions;
        });
        let reply = if self.shared.offer.credentials.is_some() && self.user.is_none() {
            "530 5.7.0 authentication required"
        } else if self.transaction.is_some() {
            "503 5.5.1 one mail at a time"
        } else {
            "250 2.1.0 ok"
        };
        if is_positive(self.answer(Phase::Mail, reply).await?) {
            let (from, parameters) = path(rest);
            self.transaction = Some(Transaction { from, parameters, to: Vec::new(), begun_at: Instant::now() });
        }
        Ok(())
    }

    async fn rcpt(&mut self, rest: &str) -> Result<(), HungUp> {
        let (to, _) = path(rest);
        let reply = if self.transaction.is_some() { "250 2.1.5 ok" } else { "503 5.5.1 MAIL first" };
        let code = self.answer_about(Phase::Rcpt, Some(&to), reply).await?;
        if let (true, Some(transaction)) = (is_positive(code), &mut self.transaction) {
            transaction.to.push(to);
        }
        Ok(())
    }

    async fn data(&mut self) -> Result<(), HungUp> {
        let has_recipient = self.transaction.as_ref().is_some_and(|t| !t.to.is_empty());
        let reply = if has_recipient { "354 go ahead" } else { "503 5.5.1 no valid recipients" };
        if self.answer(Phase::Data, reply).await? != 354 {
            return Ok(());
        }
        if let Some(to) = self.recipient() {
            self.shared.log.send_modify(|log| log.go_aheads.push(GoAhead { to, at: Instant::now() }));
        }
        self.content_begins().await?;
        let content = self.content().await?;
        let transaction = self.transaction.take();
        let Some(transaction) = transaction.filter(|t| !t.to.is_empty()) else {
            return self.answer(Phase::FinalDot, "554 5.5.1 no valid recipients").await.map(drop);
        };
        let recipient = transaction.to.first().cloned();
        let index = self.record(transaction, content);
        self.pass_gate(recipient.as_deref()).await?;
        let act = self.next_act(Phase::FinalDot, recipient.as_deref());
        if matches!(act, Some(Act::AcceptThenDisconnect | Act::AcceptThenStall)) {
            self.shared.log.send_modify(|log| log.mails[index].is_accepted = true);
            return if matches!(act, Some(Act::AcceptThenStall)) { self.stall().await.map(drop) } else { Err(HungUp) };
        }
        // Bytes that are no reply answer nothing, whatever the relay makes of the mail.
        let is_answer = !matches!(&act, Some(Act::Bytes(bytes)) if speech::code(&String::from_utf8_lossy(bytes)) == 0);
        let code = self.perform(act, &format!("250 2.0.0 Ok: queued as {:06}", self.number)).await?;
        // Told before it is written: whoever reads the 250 must find the mail here.
        self.shared.log.send_modify(|log| {
            log.mails[index].is_accepted = is_positive(code);
            log.mails[index].answered_at = is_answer.then(Instant::now);
        });
        self.flush().await
    }

    /// What the script wants done in the middle of the content.
    async fn content_begins(&mut self) -> Result<(), HungUp> {
        let recipient = self.recipient();
        let Some(act) = self.next_act(Phase::Content, recipient.as_deref()) else { return Ok(()) };
        if self.incoming.is_empty() {
            self.fill().await?;
        }
        match act {
            // A relay that has had enough says so and hangs up.
            Act::Reply(text) => {
                self.say(&text);
                self.flush().await?;
                Err(HungUp)
            }
            other => self.perform(Some(other), "").await.map(drop),
        }
    }

    async fn content(&mut self) -> Result<Vec<u8>, HungUp> {
        let mut content = Vec::new();
        loop {
            let line = self.raw_line().await?;
            if &line[..] == b".\r\n" {
                return Ok(content);
            }
            content.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
        }
    }

    fn record(&self, transaction: Transaction, content: Vec<u8>) -> usize {
        let mut index = 0;
        self.shared.log.send_modify(|log| {
            index = log.mails.len();
            log.mails.push(ReceivedMail {
                connection: self.connection,
                transaction: self.number,
                is_encrypted: self.is_encrypted,
                user: self.user.clone(),
                from: transaction.from,
                parameters: transaction.parameters,
                to: transaction.to,
                content,
                begun_at: transaction.begun_at,
                received_at: Instant::now(),
                answered_at: None,
                is_accepted: false,
            });
        });
        index
    }

    async fn pass_gate(&mut self, recipient: Option<&str>) -> Result<(), HungUp> {
        let gate = self.shared.gate.lock().expect("no test panics here").clone();
        let gate = gate.filter(|gate| !gate.free.iter().any(|free| recipient == Some(free.as_str())));
        if let Some(gate) = gate {
            self.flush().await?;
            // A gate that is closed lets everything through.
            if let Ok(permit) = gate.permits.acquire().await {
                permit.forget();
            }
        }
        Ok(())
    }

    fn recipient(&self) -> Option<String> {
        self.transaction.as_ref().and_then(|transaction| transaction.to.first().cloned())
    }
}

/// `FROM:<a@b> SIZE=1` becomes `a@b` and `SIZE=1`.
fn path(rest: &str) -> (String, String) {
    let inside = rest.split_once('<').and_then(|(_, after)| after.split_once('>')).unwrap_or(("", ""));
    (inside.0.to_owned(), inside.1.trim().to_owned())
}

fn is_positive(code: u16) -> bool {
    (200..300).contains(&code)
}
