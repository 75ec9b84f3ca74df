//! Fan-outs that were under way when the last process ended: driven again before anything else happens
//! to their groups. Deliveries may repeat; clients drop what they have.

use super::{
    GroupOp, GroupPurpose,
    cache::Load,
    edit::Edit,
    fan_out::{Retry, conv_of},
};
use crate::{
    metrics::Counter,
    shard::{Shard, Turn},
    store::{StoreCmd, StoreError, StoreReply},
    stored::Purpose,
};
use portico_wire::ids::{ConvSeq, GroupId};

/// Markers that are driven at once: the rest waits, so that a start is not a flood.
pub(crate) const AT_ONCE_MAX: usize = 64;

impl Shard {
    pub(crate) fn reopen_some(&mut self, cx: &mut Turn<'_>) {
        if self.groups.reopen_us > cx.now.mono_us {
            return;
        }
        while self.groups.reopening < AT_ONCE_MAX
            && let Some((id, list)) = self.groups.reopen.pop_first()
        {
            for conv_seq in list {
                self.groups.reopening += 1;
                let op = GroupOp::Reopen(conv_seq);
                match self.groups.enqueue(id, op, usize::MAX) {
                    Load::Ready(GroupOp::Reopen(conv_seq)) => {
                        self.reopen_fan_out(id, conv_seq, cx);
                    }
                    Load::Cold => self.load_group(id, cx),
                    Load::Ready(_) | Load::Waits | Load::Busy(_) => {}
                }
            }
        }
    }

    pub(crate) fn reopen_fan_out(&mut self, id: GroupId, conv_seq: ConvSeq, cx: &mut Turn<'_>) {
        if let Some(work) = self.groups.work(id) {
            work.edit = Some(Edit::Reopening(conv_seq));
        }
        let cmd = StoreCmd::History {
            conv: conv_of(id),
            after: ConvSeq(0),
            before: ConvSeq(conv_seq.0.saturating_add(1)),
            forward: false,
            limit: 1,
            bytes_max: u32::MAX,
        };
        self.submit(Purpose::Group(GroupPurpose::Entry(id)), cmd, cx);
    }

    pub(crate) fn on_reopened_entry(
        &mut self,
        id: GroupId,
        result: Result<StoreReply, StoreError>,
        cx: &mut Turn<'_>,
    ) {
        let work = self.groups.work(id);
        let Some(Edit::Reopening(conv_seq)) = work.and_then(|work| work.edit.take()) else {
            return;
        };
        let entry = match result {
            Ok(StoreReply::Entries { entries, .. }) => entries.into_iter().next(),
            Err(StoreError::Overloaded { .. } | StoreError::Unavailable | StoreError::Unknown) => {
                // Nothing may happen to the group before this is known.
                if let Some(work) = self.groups.work(id) {
                    work.edit = Some(Edit::Reopening(conv_seq));
                }
                return self.retry_group(Retry::Reopen(id, conv_seq), cx);
            }
            Ok(_) | Err(StoreError::Conflict | StoreError::Invalid | StoreError::Fatal) => None,
        };
        self.counters.bump(Counter::FanOutsReopened);
        match entry.filter(|entry| entry.conv_seq == conv_seq) {
            Some(entry) => self.resume_entry(id, entry, cx),
            None => {
                // The entry has been dropped with its month: the marker has outlived it. If it cannot be
                // taken away now, the next start finds it again.
                let (conv, purpose) = (conv_of(id), GroupPurpose::End(u64::MAX));
                let cmd = StoreCmd::EndFanOut { conv, conv_seq };
                self.submit(Purpose::Group(purpose), cmd, cx);
                self.groups.reopening = self.groups.reopening.saturating_sub(1);
                self.run_waiting(id, cx);
            }
        }
    }
}
