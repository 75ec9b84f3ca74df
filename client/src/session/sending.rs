//! What an owner tells a session to send: messages, acknowledgements, read marks.

use super::{
    Session, bounds,
    config::{Now, SendOptions},
    conv::Conv,
    event::SendError,
};
use portico_wire::{
    Op, RouteHeader,
    encode::put_routed,
    frame::ROUTE_END,
    ids::{ConvSeq, GroupId, MsgId, Seq, UserId},
    limits::ENVELOPE_BYTES_MAX,
    message::Envelope,
};

/// Messages without an answer are taken while less than this waits for the transport.
const UNANSWERED_BYTES_MAX: usize = 1_024 * 1_024;

impl Session {
    /// Sends a message to a user or a group. `envelope` is a finished Envelope (see
    /// [`crate::plain_envelope`]). The message stays in the outbox until [`Event::Sent`] or a
    /// final [`Event::Refused`].
    pub fn send(
        &mut self,
        now: Now,
        to: impl Into<Conv>,
        envelope: &[u8],
        options: SendOptions,
    ) -> Result<MsgId, SendError> {
        let to = to.into();
        if !to.is_valid() {
            return Err(SendError::BadRecipient);
        }
        if envelope.len() > ENVELOPE_BYTES_MAX {
            return Err(SendError::TooLarge);
        }
        if Envelope::decode(envelope).is_err() {
            return Err(SendError::BadEnvelope);
        }
        if options.request && self.requests.holds_at_least(self.settings.outbox_max) {
            return Err(SendError::Full);
        }
        let msg_id = match options.msg_id {
            Some(msg_id) => msg_id,
            None => self.new_msg_id(now),
        };
        if !options.request {
            return self.put_unanswered(to, msg_id, envelope, options);
        }
        self.requests.send(now, to, msg_id, envelope, options)?;
        self.pump(now, None);
        Ok(msg_id)
    }

    /// A message without an answer whose Envelope the owner vouches for: a server takes what is
    /// none for a broken body.
    pub(crate) fn send_unanswered(
        &mut self,
        now: Now,
        to: impl Into<Conv>,
        envelope: &[u8],
        options: SendOptions,
    ) -> Result<MsgId, SendError> {
        let to = to.into();
        if !to.is_valid() {
            return Err(SendError::BadRecipient);
        }
        if envelope.len() > ENVELOPE_BYTES_MAX {
            return Err(SendError::TooLarge);
        }
        let msg_id = match options.msg_id {
            Some(msg_id) => msg_id,
            None => self.new_msg_id(now),
        };
        self.put_unanswered(to, msg_id, envelope, options)
    }

    /// Nothing of it is remembered, so it cannot wait: what is queued goes to the transport, which
    /// takes it in order.
    fn put_unanswered(
        &mut self,
        to: Conv,
        msg_id: MsgId,
        envelope: &[u8],
        options: SendOptions,
    ) -> Result<MsgId, SendError> {
        if !self.phase.is_welcome() {
            return Err(SendError::Offline);
        }
        if ROUTE_END + envelope.len() > self.window.frame_bytes_max as usize {
            return Err(SendError::TooLarge);
        }
        if self.output.len() >= UNANSWERED_BYTES_MAX {
            return Err(SendError::Full);
        }
        let route = RouteHeader {
            msg_id,
            conv: to.number(),
            conv_kind: to.kind(),
            kind: options.kind,
            ttl_s: options.ttl_s,
            ..RouteHeader::default()
        };
        let flags = options.flags();
        put_routed(
            &mut self.output,
            Op::Send as u8,
            flags,
            0,
            0,
            &route,
            envelope,
        );
        Ok(msg_id)
    }

    /// The owner has stored every message up to `up_to`. Not needed with `auto_ack`.
    pub fn acknowledge(&mut self, now: Now, up_to: Seq) {
        let bounds = bounds(&self.settings);
        self.inbox.store(bounds, now.mono_us, up_to);
        self.flush_ack(now);
    }

    /// The user has read a conversation up to `up_to`. Repeated until the server has it. What is
    /// read is delivered: an acknowledgement that waits goes out ahead of it.
    pub fn read(&mut self, now: Now, conv: impl Into<Conv>, up_to: ConvSeq) {
        self.put_last_ack();
        self.requests.read(conv.into(), up_to);
        self.pump(now, None);
    }

    /// Asks how far these users have got and read our messages: after [`Event::Synced`], where
    /// ticks are open. Answered by [`Event::Receipt`]s; not repeated if the connection ends.
    pub fn receipts(&mut self, now: Now, peers: &[UserId]) {
        self.requests
            .ask_receipts(peers.iter().copied().map(Conv::User));
        self.pump(now, None);
    }

    /// The same for a group. With `members` the answer is a mark of each member, not of all together.
    pub fn group_receipts(&mut self, now: Now, group: GroupId, members: bool) {
        if members {
            self.requests.ask_member_receipts(group);
        } else {
            self.requests.ask_receipts([Conv::Group(group)]);
        }
        self.pump(now, None);
    }

    /// Whether [`Self::send`] takes so many messages in a row, with Envelopes of at most so many
    /// bytes. On the safe side: it may take more than it says.
    #[must_use]
    pub fn has_room_for(&self, messages: usize, envelope_bytes: usize, request: bool) -> bool {
        if request {
            let taken = self.requests.len_bound().saturating_add(messages);
            return taken <= self.settings.outbox_max;
        }
        let bytes = messages.saturating_mul(ROUTE_END + envelope_bytes);
        self.phase.is_welcome()
            && (self.output.is_empty() || self.output.len() + bytes <= UNANSWERED_BYTES_MAX)
    }
}
