//! How the relay speaks and listens: lines in, replies out, and the script's misdeeds in their stead.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use postrider::email::Phase;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Dialogue, HungUp, Wire};
use crate::support::relay::{
    log::{RelayLog, Said},
    script::{Act, next_act},
};

impl Dialogue {
    pub(super) async fn answer(&mut self, phase: Phase, reply: &str) -> Result<u16, HungUp> {
        let recipient = self.recipient();
        self.answer_about(phase, recipient.as_deref(), reply).await
    }

    pub(super) async fn answer_about(
        &mut self,
        phase: Phase,
        recipient: Option<&str>,
        reply: &str,
    ) -> Result<u16, HungUp> {
        let act = self.next_act(phase, recipient);
        self.perform(act, reply).await
    }

    pub(super) fn next_act(&self, phase: Phase, recipient: Option<&str>) -> Option<Act> {
        next_act(&mut self.shared.rules.lock().expect("no test panics here"), phase, recipient, self.number)
    }

    /// Says `reply`, or does what the script wants instead. Returns the code that the relay goes by.
    pub(super) async fn perform(&mut self, act: Option<Act>, reply: &str) -> Result<u16, HungUp> {
        match act {
            None => self.say(reply),
            Some(Act::Reply(text)) => {
                self.say(&text);
                return Ok(code(&text));
            }
            Some(Act::Bytes(bytes)) => {
                self.outgoing.extend_from_slice(&bytes);
                let said = code(&String::from_utf8_lossy(&bytes));
                return Ok(if said == 0 { code(reply) } else { said });
            }
            Some(Act::BytesThenStall(bytes)) => {
                self.outgoing.extend_from_slice(&bytes);
                return self.stall().await;
            }
            Some(Act::Stall) => return self.stall().await,
            Some(Act::Disconnect | Act::AcceptThenDisconnect | Act::AcceptThenStall) => {
                self.flush().await?;
                return Err(HungUp);
            }
            Some(Act::Delay(pause)) => {
                self.flush().await?;
                tokio::time::sleep(pause).await;
                self.say(reply);
            }
        }
        Ok(code(reply))
    }

    /// Neither reads nor speaks until the other side has hung up.
    pub(super) async fn stall(&mut self) -> Result<u16, HungUp> {
        self.flush().await?;
        let mut ignored = [0; 512];
        while self.wire()?.read(&mut ignored).await? > 0 {
            // A byte at a time, so that a large content backs up as it would behind a relay that hangs.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(HungUp)
    }

    pub(super) fn say(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        self.note(true, text);
        self.outgoing.extend_from_slice(text.as_bytes());
        self.outgoing.extend_from_slice(b"\r\n");
    }

    pub(super) fn note(&self, by_relay: bool, text: &str) {
        self.shared.log.send_modify(|log: &mut RelayLog| {
            let lines = text.split("\r\n").map(str::to_owned);
            log.said.extend(lines.map(|line| Said { connection: self.connection, at: Instant::now(), by_relay, line }));
        });
    }

    pub(super) async fn line(&mut self) -> Result<String, HungUp> {
        let line = self.raw_line().await?;
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        self.note(false, &line);
        Ok(line)
    }

    pub(super) async fn raw_line(&mut self) -> Result<BytesMut, HungUp> {
        loop {
            if let Some(end) = self.incoming.iter().position(|byte| *byte == b'\n') {
                return Ok(self.incoming.split_to(end + 1));
            }
            self.fill().await?;
        }
    }

    /// Replies leave together, when there is nothing left to answer (RFC 2920 §3.2).
    pub(super) async fn fill(&mut self) -> Result<(), HungUp> {
        self.flush().await?;
        self.incoming.reserve(16 * 1024);
        let Some(wire) = &mut self.wire else { return Err(HungUp) };
        if wire.read_buf(&mut self.incoming).await? == 0 { Err(HungUp) } else { Ok(()) }
    }

    pub(super) async fn flush(&mut self) -> Result<(), HungUp> {
        let bytes = std::mem::take(&mut self.outgoing);
        let wire = self.wire()?;
        wire.write_all(&bytes).await?;
        wire.flush().await?;
        Ok(())
    }

    pub(super) fn wire(&mut self) -> Result<&mut Box<dyn Wire>, HungUp> {
        self.wire.as_mut().ok_or(HungUp)
    }
}

pub(super) fn code(text: &str) -> u16 {
    text.get(..3).and_then(|digits| digits.parse().ok()).unwrap_or(0)
}
