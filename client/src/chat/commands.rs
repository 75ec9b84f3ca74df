//! What begins with a slash, and the answers to it.

use super::{
    Chat, ChatError,
    company::{Asked, state},
};
use crate::{
    owned::{OwnedAnswer, OwnedGroup, OwnedGroupChange},
    session::{AskId, Conv, Page, SendError},
};
use portico_wire::{
    ErrorCode,
    frame::signal_kind,
    ids::{ConvSeq, GroupId, UserId},
    limits::{HISTORY_PAGE_MAX, PRESENCE_SUBS_MAX},
    message::group::{GroupAction, GroupCreate, GroupEdit, Member, Role},
};
use std::io::Write;

/// How long a signal is to be shown.
const SIGNAL_TTL_S: u32 = 6;
/// Entries of a page that nobody has given a length.
const HISTORY_DEFAULT: u16 = 20;
/// No line is longer than 60 columns, the two dashes before it included.
const HELP: [&str; 10] = [
    "a line is a message to whom you talk to",
    "/to USER, /to GROUP   talk to somebody else",
    "/group NAME USER...   make a group, and talk to it",
    "/invite USER...       add members to the group",
    "/leave                leave the group",
    "/who                  members, and who is there",
    "/history [N]          what was said before, newest last",
    "/typing [on|off]      say that you are typing",
    "//text                a message that begins with a slash",
    "/quit (or Ctrl-D)     end",
];

impl<W: Write> Chat<W> {
    /// A line without its slash.
    pub(super) fn command(&mut self, line: &str) -> Result<(), ChatError> {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default();
        let words: Vec<&str> = words.collect();
        match name {
            "help" => {
                for line in HELP {
                    self.screen.notice(line)?;
                }
                Ok(())
            }
            "to" => self.talk_to(&words),
            "group" => self.make_group(&words),
            "invite" => self.invite(&words),
            "leave" => self.leave(),
            "who" => self.who(),
            "history" => self.page(&words),
            "typing" => self.typing(&words),
            _ => Ok(self.screen.notice("no such command; /help")?),
        }
    }

    fn talk_to(&mut self, words: &[&str]) -> Result<(), ChatError> {
        match words.first().and_then(|name| self.company.find(name)) {
            Some(conv) => self.turn_to(conv),
            None => Ok(self
                .screen
                .notice("/to USER, or the title or #NUMBER of a group of yours")?),
        }
    }

    pub(super) fn turn_to(&mut self, conv: Conv) -> Result<(), ChatError> {
        self.to = conv;
        let text = format!("you talk to {}", self.company.name(conv));
        self.screen.notice(&text)?;
        self.watch();
        Ok(())
    }

    /// Watches whom we talk to. Nothing is said where the server does not have that.
    pub(super) fn watch(&mut self) {
        let users: Vec<UserId> = match self.to {
            Conv::User(user) => vec![user],
            Conv::Group(group) => {
                let group = self.company.groups.get(&group);
                let members = group.and_then(|group| group.members.as_ref());
                let users = members.into_iter().flatten().map(|member| member.user);
                let others = users.filter(|user| *user != self.options.user);
                others.take(PRESENCE_SUBS_MAX).collect()
            }
        };
        if users.is_empty() {
            return;
        }
        if let Ok(ask) = self.client.subscribe(&users, &[]) {
            self.company.asked.insert(ask, Asked::Watch);
        }
    }

    fn make_group(&mut self, words: &[&str]) -> Result<(), ChatError> {
        let usage = "/group NAME USER...: NAME is one word, users are numbers";
        let Some((title, members)) = words.split_first() else {
            return Ok(self.screen.notice(usage)?);
        };
        let Some(members) = users(members) else {
            return Ok(self.screen.notice(usage)?);
        };
        let create = GroupCreate {
            members,
            title,
            ..GroupCreate::default()
        };
        let asked = self.client.create_group(&create, None);
        self.asked(asked, Asked::Create)
    }

    fn invite(&mut self, words: &[&str]) -> Result<(), ChatError> {
        let Conv::Group(group) = self.to else {
            return Ok(self
                .screen
                .notice("/invite adds to a group: /to GROUP first")?);
        };
        let members = users(words).filter(|members| !members.is_empty());
        let Some(members) = members else {
            return Ok(self.screen.notice("/invite USER...: users are numbers")?);
        };
        let edit = edit(GroupAction::ADD, members);
        let asked = self.client.edit_group(group, 0, &edit);
        self.asked(asked, Asked::Invite)
    }

    fn leave(&mut self) -> Result<(), ChatError> {
        let Conv::Group(group) = self.to else {
            return Ok(self
                .screen
                .notice("/leave leaves a group: /to GROUP first")?);
        };
        let edit = edit(GroupAction::LEAVE, vec![self.options.user]);
        let asked = self.client.edit_group(group, 0, &edit);
        self.asked(asked, Asked::Leave)
    }

    fn who(&mut self) -> Result<(), ChatError> {
        match self.to {
            Conv::Group(group) => {
                let asked = self.client.group(group, 0);
                self.asked(asked, Asked::Who)
            }
            Conv::User(user) => {
                let asked = self.client.subscribe(&[user], &[]);
                self.asked(asked, Asked::Who)
            }
        }
    }

    fn page(&mut self, words: &[&str]) -> Result<(), ChatError> {
        let limit = match words.first() {
            None => Some(HISTORY_DEFAULT),
            Some(word) => word.parse().ok(),
        };
        let Some(limit) = limit.filter(|limit| (1..=HISTORY_PAGE_MAX).contains(limit)) else {
            let text = format!("/history N: 1 to {HISTORY_PAGE_MAX}");
            return Ok(self.screen.notice(&text)?);
        };
        let asked = self.client.history(self.to, Page::newest(limit));
        self.asked(asked, Asked::History(Vec::new()))
    }

    fn typing(&mut self, words: &[&str]) -> Result<(), ChatError> {
        match words.first() {
            None => self.type_now(),
            Some(&"on") => self.tells_typing = true,
            Some(&"off") => self.tells_typing = false,
            Some(_) => self.screen.notice("/typing, /typing on, /typing off")?,
        }
        Ok(())
    }

    pub(super) fn type_now(&self) {
        self.client
            .signal(self.to, signal_kind::TYPING, SIGNAL_TTL_S);
    }

    fn asked(&mut self, ask: Result<AskId, SendError>, about: Asked) -> Result<(), ChatError> {
        match ask {
            Ok(ask) => {
                self.company.asked.insert(ask, about);
                Ok(())
            }
            Err(error) => Ok(self.screen.notice(&format!("not asked: {error}"))?),
        }
    }

    pub(super) fn answer(&mut self, ask: AskId, answer: OwnedAnswer) -> Result<(), ChatError> {
        if !answer.is_last() {
            match (self.company.asked.get_mut(&ask), answer) {
                (Some(Asked::Titles), OwnedAnswer::Group { group, .. }) => {
                    self.company.learn(group);
                }
                (Some(Asked::History(entries)), entry) => entries.push(entry),
                _ => {}
            }
            return Ok(());
        }
        let Some(about) = self.company.asked.remove(&ask) else {
            return Ok(());
        };
        if let OwnedAnswer::Failed { code, detail, .. } = &answer {
            // What was asked without the user is not there, and not missed.
            return match about.is_command() {
                true => self.failed(*code, detail),
                false => Ok(()),
            };
        }
        match (about, answer) {
            (Asked::Create, OwnedAnswer::Group { group, .. }) => {
                let conv = Conv::Group(group.group);
                let text = format!("{} is #{}", group.title, group.group);
                self.company.learn(group);
                self.screen.notice(&text)?;
                self.turn_to(conv)?;
            }
            (Asked::Invite, OwnedAnswer::Group { group, .. }) => {
                self.company.learn(group);
                self.screen.notice("invited")?;
                self.watch();
            }
            (Asked::Leave, _) => {
                let text = format!("you have left {}", self.company.name(self.to));
                self.screen.notice(&text)?;
                self.turn_to(Conv::User(self.options.peer))?;
            }
            (Asked::Who, OwnedAnswer::Group { group, .. }) => self.show_members(group)?,
            (Asked::Who, OwnedAnswer::Presence { items }) => {
                for item in items {
                    let text = format!("user {}: {}", item.user, state(&item));
                    self.company.saw(item);
                    self.screen.notice(&text)?;
                }
            }
            (Asked::History(entries), _) => self.show_page(entries)?,
            (Asked::Titles, OwnedAnswer::Group { group, .. }) => self.company.learn(group),
            (Asked::Watch, OwnedAnswer::Presence { items }) => {
                let quiet = items.len() > 1;
                for item in items {
                    if self.company.saw(item) && !quiet {
                        let text = format!("user {} is {}", item.user, state(&item));
                        self.screen.notice(&text)?;
                    }
                }
            }
            (Asked::Create | Asked::Invite | Asked::Who | Asked::Titles | Asked::Watch, _) => {}
        }
        self.go_on()
    }

    fn failed(&mut self, code: ErrorCode, detail: &str) -> Result<(), ChatError> {
        let text = match detail {
            "" => format!("not done: {code}"),
            detail => format!("not done: {detail} ({code})"),
        };
        self.screen.notice(&text)?;
        self.go_on()
    }

    fn show_members(&mut self, group: OwnedGroup) -> Result<(), ChatError> {
        let members = group.members.clone().unwrap_or_default();
        let text = format!(
            "{}, #{}: {} members",
            group.title,
            group.group,
            members.len()
        );
        self.screen.notice(&text)?;
        for member in &members {
            let role = match member.role {
                Role::OWNER => ", owner",
                Role::ADMIN => ", admin",
                _ => "",
            };
            let place = match self.company.state(member.user) {
                _ if member.user == self.options.user => "you".to_owned(),
                known => known,
            };
            let text = format!("  user {}{role}  {place}", member.user);
            self.screen.notice(text.trim_end())?;
        }
        self.company.learn(group);
        self.watch();
        Ok(())
    }

    /// Newest first as it came, shown newest last.
    fn show_page(&mut self, entries: Vec<OwnedAnswer>) -> Result<(), ChatError> {
        self.screen.notice("what was said before:")?;
        for entry in entries.into_iter().rev() {
            match entry {
                OwnedAnswer::Entry {
                    conv_seq,
                    from,
                    kind,
                    envelope,
                    ..
                } => {
                    let name = self.name_of(from);
                    self.show_text(conv_seq, &name, kind, envelope)?;
                }
                OwnedAnswer::GroupEntry {
                    conv_seq,
                    by,
                    change,
                } => self.show_change(conv_seq, by, &change)?,
                OwnedAnswer::WithdrawnEntry { by, .. } => {
                    let text = format!("user {by} has withdrawn a message");
                    self.screen.notice(&text)?;
                }
                _ => {}
            }
        }
        Ok(self.screen.notice("until now")?)
    }

    fn name_of(&self, user: UserId) -> String {
        match user == self.options.user {
            true => "you".to_owned(),
            false => format!("user {user}"),
        }
    }

    fn show_change(
        &mut self,
        _at: ConvSeq,
        by: UserId,
        change: &OwnedGroupChange,
    ) -> Result<(), ChatError> {
        let by = self.name_of(by);
        let who: Vec<String> = change
            .members
            .iter()
            .take(5)
            .map(|m| m.user.to_string())
            .collect();
        let who = who.join(", ");
        let text = match change.action {
            GroupAction::CREATE => format!("{by} made the group"),
            GroupAction::ADD => format!("{by} added {who}"),
            GroupAction::REMOVE => format!("{by} removed {who}"),
            GroupAction::LEAVE => format!("{by} left"),
            GroupAction::JOIN => format!("{by} joined"),
            GroupAction::DELETE => format!("{by} deleted the group"),
            _ => format!("{by} changed the group"),
        };
        Ok(self.screen.notice(&text)?)
    }

    /// A change of a group has come.
    pub(super) fn changed(
        &mut self,
        group: GroupId,
        at: ConvSeq,
        by: UserId,
        change: &OwnedGroupChange,
    ) -> Result<(), ChatError> {
        if !self.company.groups.contains_key(&group) {
            // Its title is asked for, so that it can be called by its name.
            self.ask_titles();
            let text = format!("you are in group #{group}; /to #{group}");
            self.screen.notice(&text)?;
        }
        let name = self.company.name(Conv::Group(group));
        self.screen.notice(&format!("in {name}:"))?;
        self.show_change(at, by, change)
    }

    pub(super) fn ask_titles(&mut self) {
        if let Ok(ask) = self.client.group(GroupId(0), 0) {
            self.company.asked.insert(ask, Asked::Titles);
        }
    }
}

fn edit(action: GroupAction, members: Vec<UserId>) -> GroupEdit<'static> {
    let member = |user| Member {
        user,
        ..Member::default()
    };
    GroupEdit {
        action,
        members: members.into_iter().map(member).collect(),
        ..GroupEdit::default()
    }
}

fn users(words: &[&str]) -> Option<Vec<UserId>> {
    let user = |word: &&str| word.parse().ok().map(UserId).filter(|user| user.is_valid());
    words.iter().map(user).collect()
}

#[cfg(test)]
mod tests {
    use super::HELP;

    #[test]
    fn help_fits_into_sixty_columns() {
        assert!(HELP.iter().all(|line| line.chars().count() + 3 <= 60));
    }
}
