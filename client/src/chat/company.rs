//! Who is who: groups by their titles, who is there, what has been asked about them.

use super::marks::Marks;
use crate::{
    owned::{OwnedAnswer, OwnedGroup},
    session::{AskId, Conv},
};
use portico_wire::{
    ids::{ConvSeq, GroupId, MsgId, UserId},
    message::people::{PresenceItem, PresenceState},
};
use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

/// Somebody who goes on typing is shown again after this.
const TYPING_SHOWN: Duration = Duration::from_secs(6);
/// Users whose presence, and groups whose titles, are remembered.
const KNOWN_MAX: usize = 4_096;

/// What an answer will be about.
#[derive(Clone, Debug)]
pub(super) enum Asked {
    Create,
    Invite,
    Leave,
    Who,
    History(Vec<OwnedAnswer>),
    /// All groups, for their titles: nobody waits for that.
    Titles,
    /// The presence of whom we talk to: the same.
    Watch,
}

impl Asked {
    /// The user has asked, and waits.
    pub(super) const fn is_command(&self) -> bool {
        !matches!(self, Self::Titles | Self::Watch)
    }
}

#[derive(Debug, Default)]
pub(super) struct Company {
    pub(super) groups: BTreeMap<GroupId, OwnedGroup>,
    pub(super) asked: HashMap<AskId, Asked>,
    presence: HashMap<UserId, PresenceItem>,
    typing: HashMap<(Conv, UserId), Instant>,
    marks: BTreeMap<Conv, Marks>,
}

impl Company {
    pub(super) fn marks(&mut self, conv: Conv) -> &mut Marks {
        self.marks.entry(conv).or_default()
    }

    /// See [`Marks::sent`].
    pub(super) fn sent(&mut self, msg_id: MsgId, conv_seq: ConvSeq) -> Option<String> {
        let mut all = self.marks.values_mut();
        all.find_map(|marks| marks.sent(msg_id, conv_seq))
    }

    /// See [`Marks::refused`]; with the conversation that it was meant for.
    pub(super) fn refused(&mut self, msg_id: MsgId) -> Option<(Conv, String)> {
        let mut all = self.marks.iter_mut();
        all.find_map(|(conv, marks)| Some((*conv, marks.refused(msg_id)?)))
    }

    /// Conversations with messages that are not yet read.
    pub(super) fn open(&self) -> Vec<Conv> {
        let open = self.marks.iter().filter(|(_, marks)| marks.are_open());
        open.map(|(conv, _)| *conv).collect()
    }

    pub(super) fn unsent(&self) -> usize {
        self.marks.values().map(Marks::unsent).sum()
    }

    /// Nothing is open that the user has asked for.
    pub(super) fn is_idle(&self) -> bool {
        !self.asked.values().any(Asked::is_command)
    }

    /// A group is about to be made: what is typed next is meant for it.
    pub(super) fn is_creating(&self) -> bool {
        self.asked
            .values()
            .any(|asked| matches!(asked, Asked::Create))
    }

    pub(super) fn learn(&mut self, group: OwnedGroup) {
        if let Some(known) = self.groups.get_mut(&group.group) {
            let members = group.members.clone().or_else(|| known.members.take());
            *known = OwnedGroup { members, ..group };
        } else if self.groups.len() < KNOWN_MAX {
            self.groups.insert(group.group, group);
        }
    }

    /// `team` or `group 17`, `user 2`.
    pub(super) fn name(&self, conv: Conv) -> String {
        let title = match conv {
            Conv::User(_) => None,
            Conv::Group(group) => self.groups.get(&group).map(|group| group.title.as_str()),
        };
        match title {
            Some(title) if !title.is_empty() => title.to_owned(),
            _ => conv.to_string(),
        }
    }

    /// Whom a user means: a number is a user, `#` and a number or a title is a group.
    pub(super) fn find(&self, name: &str) -> Option<Conv> {
        if let Ok(number) = name.parse() {
            let user = UserId(number);
            return user.is_valid().then_some(Conv::User(user));
        }
        if let Some(number) = name.strip_prefix('#') {
            return number.parse().ok().map(|group| Conv::Group(GroupId(group)));
        }
        let mut titled = self.groups.values().filter(|group| group.title == name);
        titled.next().map(|group| Conv::Group(group.group))
    }

    /// True if that is news.
    pub(super) fn saw(&mut self, item: PresenceItem) -> bool {
        if self.presence.len() >= KNOWN_MAX && !self.presence.contains_key(&item.user) {
            return false;
        }
        self.presence.insert(item.user, item) != Some(item)
    }

    /// Somebody is typing; true if that is to be shown.
    pub(super) fn types(&mut self, conv: Conv, user: UserId) -> bool {
        let now = Instant::now();
        self.typing
            .retain(|_, shown| now.duration_since(*shown) < TYPING_SHOWN);
        if self.typing.len() >= KNOWN_MAX || self.typing.contains_key(&(conv, user)) {
            return false;
        }
        self.typing.insert((conv, user), now);
        true
    }

    /// A message has come, so its author types no longer.
    pub(super) fn wrote(&mut self, conv: Conv, user: UserId) {
        self.typing.remove(&(conv, user));
    }

    /// Behind a name; empty when nothing is known.
    pub(super) fn state(&self, user: UserId) -> String {
        self.presence.get(&user).map(state).unwrap_or_default()
    }
}

pub(super) fn state(item: &PresenceItem) -> String {
    match (item.state, item.last_seen_s) {
        (PresenceState::Online, _) => "online".to_owned(),
        (PresenceState::Away, _) => "away".to_owned(),
        (PresenceState::Offline, 0) => "offline".to_owned(),
        (PresenceState::Offline, at_s) => {
            let (hour, minute) = (at_s / 3_600 % 24, at_s / 60 % 60);
            format!("last seen {hour:02}:{minute:02} UTC")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_users_and_titles_are_groups() {
        let mut company = Company::default();
        company.learn(OwnedGroup {
            group: GroupId(7),
            title: "team".to_owned(),
            ..OwnedGroup::default()
        });
        assert_eq!(company.find("3"), Some(Conv::User(UserId(3))));
        assert_eq!(company.find("0"), None);
        assert_eq!(company.find("#9"), Some(Conv::Group(GroupId(9))));
        assert_eq!(company.find("team"), Some(Conv::Group(GroupId(7))));
        assert_eq!(company.find("nobody"), None);
        assert_eq!(company.name(Conv::Group(GroupId(7))), "team");
        assert_eq!(company.name(Conv::Group(GroupId(8))), "group 8");
    }

    #[test]
    fn typing_is_shown_once_until_a_message_comes() {
        let mut company = Company::default();
        let (conv, user) = (Conv::User(UserId(2)), UserId(2));
        assert!(company.types(conv, user));
        assert!(!company.types(conv, user));
        company.wrote(conv, user);
        assert!(company.types(conv, user));
    }
}
