//! Which own messages have which mark.

use portico_wire::ids::{ConvSeq, MsgId};
use std::collections::VecDeque;

/// Sent messages whose later marks are still of interest; the oldest are forgotten.
const SENT_MAX: usize = 1_000;
/// Characters of a message that are repeated behind its mark.
const EXCERPT_CHARS_MAX: usize = 40;

#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Without SENT, with their whole text.
    queued: Vec<(MsgId, String)>,
    sent: VecDeque<Sent>,
    delivered: ConvSeq,
    read: ConvSeq,
    /// In a group: how many have got to which message, delivered and read.
    told: [(ConvSeq, u16); 2],
}

#[derive(Debug)]
struct Sent {
    conv_seq: ConvSeq,
    excerpt: String,
}

impl Marks {
    pub(super) fn queued(&mut self, msg_id: MsgId, text: &str) {
        self.queued.push((msg_id, text.to_owned()));
    }

    /// The excerpt to show, if the message is ours.
    pub(super) fn sent(&mut self, msg_id: MsgId, conv_seq: ConvSeq) -> Option<String> {
        let excerpt = excerpt(&self.take(msg_id)?);
        if self.sent.len() >= SENT_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back(Sent {
            conv_seq,
            excerpt: excerpt.clone(),
        });
        Some(excerpt)
    }

    /// The text of a message that will not be sent.
    pub(super) fn refused(&mut self, msg_id: MsgId) -> Option<String> {
        self.take(msg_id)
    }

    /// A watermark has moved: the excerpt of the last message that it passed.
    pub(super) fn reached(&mut self, read: bool, up_to: ConvSeq) -> Option<String> {
        let mark = if read {
            &mut self.read
        } else {
            &mut self.delivered
        };
        if up_to <= *mark {
            return None;
        }
        let passed = |sent: &&Sent| sent.conv_seq > *mark && sent.conv_seq <= up_to;
        let count = self.sent.iter().filter(passed).count();
        let last = self
            .sent
            .iter()
            .filter(passed)
            .max_by_key(|sent| sent.conv_seq);
        let text = last.map(|last| match count {
            1 => last.excerpt.clone(),
            _ => format!("{} (and {} before)", last.excerpt, count - 1),
        });
        *mark = up_to;
        if read {
            self.delivered = self.delivered.max(up_to);
            self.sent.retain(|sent| sent.conv_seq > up_to);
        }
        text
    }

    /// So many members of a group have got to a message: its excerpt, if that is news.
    pub(super) fn partly(&mut self, read: bool, up_to: ConvSeq, reached: u16) -> Option<String> {
        let told = &mut self.told[usize::from(read)];
        if reached == 0 || (up_to, reached) <= *told {
            return None;
        }
        *told = (up_to, reached);
        let sent = self.sent.iter().rev();
        let last = sent.into_iter().find(|sent| sent.conv_seq <= up_to)?;
        Some(last.excerpt.clone())
    }

    pub(super) fn unsent(&self) -> usize {
        self.queued.len()
    }

    /// Some message is sent and not yet read.
    pub(super) fn are_open(&self) -> bool {
        !self.sent.is_empty()
    }

    fn take(&mut self, msg_id: MsgId) -> Option<String> {
        let at = self.queued.iter().position(|(id, _)| *id == msg_id)?;
        Some(self.queued.remove(at).1)
    }
}

fn excerpt(text: &str) -> String {
    let mut chars = text.chars();
    let mut excerpt: String = chars.by_ref().take(EXCERPT_CHARS_MAX).collect();
    if chars.next().is_some() {
        excerpt.push('…');
    }
    excerpt
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mark_is_shown_once_and_a_watermark_covers_what_it_passes() {
        let mut marks = Marks::default();
        for n in 1..=3 {
            marks.queued(MsgId(n), &format!("text {n}"));
        }
        assert_eq!(marks.unsent(), 3);
        for n in 1..=3 {
            let shown = marks.sent(MsgId(n), ConvSeq(n as u64 * 10));
            assert_eq!(shown, Some(format!("text {n}")));
            assert_eq!(marks.sent(MsgId(n), ConvSeq(1)), None);
        }
        let passed = marks.reached(false, ConvSeq(20));
        assert_eq!(passed.as_deref(), Some("text 2 (and 1 before)"));
        assert_eq!(marks.reached(false, ConvSeq(20)), None);
        assert_eq!(marks.reached(true, ConvSeq(10)).as_deref(), Some("text 1"));
        // Read implies delivered: no line for that any more.
        assert!(marks.reached(true, ConvSeq(99)).is_some());
        assert_eq!(marks.reached(false, ConvSeq(99)), None);
        assert!(!marks.are_open());
    }

    #[test]
    fn a_group_gets_there_one_by_one_and_each_count_is_shown_once() {
        let mut marks = Marks::default();
        marks.queued(MsgId(1), "hi");
        marks.sent(MsgId(1), ConvSeq(10));
        assert_eq!(marks.partly(false, ConvSeq(10), 0), None);
        assert_eq!(marks.partly(false, ConvSeq(10), 1).as_deref(), Some("hi"));
        assert_eq!(marks.partly(false, ConvSeq(10), 1), None);
        assert!(marks.partly(false, ConvSeq(10), 2).is_some());
        assert!(marks.partly(true, ConvSeq(10), 1).is_some());
        assert!(marks.are_open());
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let cut = excerpt(&"ü".repeat(50));
        assert_eq!(cut, format!("{}…", "ü".repeat(40)));
        assert_eq!(excerpt("short"), "short");
    }
}
