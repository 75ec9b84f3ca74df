//! What the session tells, made visible.

use super::{Chat, ChatError, company, mint};
use crate::{
    owned::{OwnedEnvelope, OwnedEvent},
    session::Conv,
};
use portico_wire::{
    ErrorCode,
    frame::{msg_kind, signal_kind},
    ids::{ConvSeq, DeviceId, MsgId, UserId},
};
use std::io::Write;

/// Who wrote a message.
#[derive(Clone, Copy, Debug)]
struct Author {
    user: UserId,
    device: DeviceId,
}

impl<W: Write> Chat<W> {
    pub(super) fn event(&mut self, event: OwnedEvent) -> Result<(), ChatError> {
        match event {
            OwnedEvent::Message {
                seq,
                conv_seq,
                peer,
                from,
                from_device,
                group,
                kind,
                envelope,
                ..
            } => {
                let conv = group.map_or(Conv::User(peer), Conv::Group);
                self.company.wrote(conv, from);
                let author = Author {
                    user: from,
                    device: from_device,
                };
                self.show(author, conv, conv_seq, kind, envelope)?;
                self.passed(seq)?;
                if from != self.options.user {
                    self.client.read(conv, conv_seq);
                }
            }
            OwnedEvent::Undecodable { from, .. } => {
                self.screen
                    .notice(&format!("a message from user {from} cannot be read"))?;
                self.save()?;
            }
            OwnedEvent::Sent {
                msg_id, conv_seq, ..
            } => {
                if let Some(text) = self.company.sent(msg_id, conv_seq) {
                    self.screen.mark(conv_seq.0, "✓", &text)?;
                }
                self.save()?;
            }
            OwnedEvent::Refused {
                msg_id,
                code,
                will_retry,
                ..
            } => self.refused(msg_id, code, will_retry)?,
            OwnedEvent::Receipt {
                peer,
                read,
                up_to,
                at_s,
            } => {
                let marks = self.company.marks(Conv::User(peer));
                if let Some(text) = marks.reached(read, up_to) {
                    let mark = if read {
                        "✓✓ read"
                    } else {
                        "✓✓ delivered"
                    };
                    let at_us = u64::from(at_s) * 1_000_000;
                    self.screen.mark(at_us, mark, &text)?;
                }
            }
            OwnedEvent::GroupReceipt {
                group,
                member: None,
                reached,
                of,
                read,
                up_to,
                at_s,
            } => {
                let marks = self.company.marks(Conv::Group(group));
                let all = reached == of;
                let text = match all {
                    true => marks.reached(read, up_to),
                    false => marks.partly(read, up_to, reached),
                };
                if let Some(text) = text {
                    let what = if read { "read by" } else { "delivered to" };
                    let mark = match (all, of) {
                        (true, 0) => format!("✓✓ {what} all"),
                        (true, of) => format!("✓✓ {what} all {of}"),
                        (false, of) => format!("✓✓ {what} {reached} of {of}"),
                    };
                    let at_us = u64::from(at_s) * 1_000_000;
                    self.screen.mark(at_us, &mark, &text)?;
                }
            }
            OwnedEvent::Signal {
                conv, from, kind, ..
            } => {
                if kind == signal_kind::STOPPED {
                    self.company.wrote(conv, from);
                } else if self.company.types(conv, from) {
                    let place = match conv {
                        Conv::User(_) => String::new(),
                        Conv::Group(_) => format!(" in {}", self.company.name(conv)),
                    };
                    let what = match kind {
                        signal_kind::RECORDING => "recording",
                        _ => "typing",
                    };
                    self.screen
                        .notice(&format!("user {from} is {what}{place} ..."))?;
                }
            }
            OwnedEvent::Presence { items } => {
                for item in items {
                    if self.company.saw(item) {
                        let text = format!("user {} is {}", item.user, company::state(&item));
                        self.screen.notice(&text)?;
                    }
                }
            }
            OwnedEvent::Answer { ask, answer } => self.answer(ask, answer)?,
            OwnedEvent::GroupChanged {
                seq,
                conv_seq,
                group,
                by,
                change,
                ..
            } => {
                self.changed(group, conv_seq, by, &change)?;
                self.passed(seq)?;
            }
            OwnedEvent::Withdrawn { seq, by, .. } => {
                self.screen
                    .notice(&format!("user {by} has withdrawn a message"))?;
                self.passed(seq)?;
            }
            OwnedEvent::TokenExpiring { .. } => {
                self.client.renew(mint(&self.key, &self.options));
            }
            OwnedEvent::RenewalRefused { code } => {
                let text = format!("the gateway did not take a new token ({code})");
                self.screen.notice(&text)?;
            }
            OwnedEvent::Welcome { .. } => {
                self.is_cut_off = false;
                let (user, target) = (self.options.user, &self.options.target);
                let text = format!("connected to {target} as user {user}");
                self.screen.notice(&text)?;
            }
            OwnedEvent::Synced { .. } => {
                self.synced = true;
                self.save()?;
                for conv in self.company.open() {
                    match conv {
                        Conv::User(user) => self.client.receipts(&[user]),
                        Conv::Group(group) => self.client.group_receipts(group, false),
                    }
                }
                self.ask_titles();
                self.watch();
            }
            OwnedEvent::Gap { .. } => {
                self.screen
                    .notice("older messages were dropped by the server's retention")?;
            }
            OwnedEvent::Draining { .. } => self.screen.notice("the server is going away")?,
            OwnedEvent::Closed {
                code,
                reconnect_after_ms,
                detail,
                ..
            } => self.closed(code, reconnect_after_ms, &detail)?,
            OwnedEvent::ProtocolFault(fault) => {
                self.screen
                    .notice(&format!("the server broke the protocol: {fault}"))?;
            }
            OwnedEvent::GroupReceipt { .. }
            | OwnedEvent::GroupReadElsewhere { .. }
            | OwnedEvent::Renewed { .. }
            | OwnedEvent::ReadElsewhere { .. }
            | OwnedEvent::Duplicate { .. } => {}
        }
        Ok(())
    }

    fn show(
        &mut self,
        author: Author,
        conv: Conv,
        conv_seq: ConvSeq,
        kind: u8,
        envelope: Option<OwnedEnvelope>,
    ) -> Result<(), ChatError> {
        let mut name = if author.user == self.options.user {
            format!("you (device {})", author.device)
        } else {
            format!("user {}", author.user)
        };
        if let Conv::Group(_) = conv {
            name = format!("{name} in {}", self.company.name(conv));
        }
        self.show_text(conv_seq, &name, kind, envelope)
    }

    pub(super) fn show_text(
        &mut self,
        conv_seq: ConvSeq,
        name: &str,
        kind: u8,
        envelope: Option<OwnedEnvelope>,
    ) -> Result<(), ChatError> {
        // Keys and the chatter of devices are not for people.
        if matches!(kind, msg_kind::KEY_DISTRIBUTION | msg_kind::DEVICE_SYNC) {
            return Ok(());
        }
        let text = match &envelope {
            None => "(withdrawn)".into(),
            Some(envelope) if envelope.cipher != 0 || envelope.packing != 0 => "(encrypted)".into(),
            Some(envelope) => String::from_utf8_lossy(&envelope.body),
        };
        self.screen.message(conv_seq.0, name, &text)?;
        Ok(())
    }

    fn refused(
        &mut self,
        msg_id: MsgId,
        code: ErrorCode,
        will_retry: bool,
    ) -> Result<(), ChatError> {
        if will_retry {
            return Ok(self.screen.notice(&format!("not sent yet: {code}"))?);
        }
        let Some((conv, text)) = self.company.refused(msg_id) else {
            return Ok(());
        };
        // The session has set its clock by the server's: a new id will do.
        if code == ErrorCode::CLOCK_AHEAD {
            return self.send_to(conv, &text);
        }
        self.screen.notice(&format!("not sent: {code}: {text}"))?;
        self.save()
    }
}
