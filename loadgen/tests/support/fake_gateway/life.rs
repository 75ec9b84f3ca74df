//! Groups, presence, signals and history of the gateway that breaks promises.

use super::{Connection, Ended, Fault, User, World};
use portico_wire::{
    Flags, Frame, Op, RouteHeader,
    encode::{self, Encoder, people::put_signal},
    frame::ConvKind,
    ids::{ConvSeq, GroupId, Seq, UserId},
    message::{
        group::{Group, GroupAction, GroupCreate, GroupEdit, GroupEvent},
        history::{HistoryEnd, HistoryGet},
        people::{PresenceItem, PresenceState, PresenceSub},
    },
};
use std::collections::HashMap;

/// What is kept beside users.
#[derive(Debug, Default)]
pub(super) struct Life {
    groups: HashMap<u64, Members>,
    /// Between two users.
    talks: HashMap<(UserId, UserId), Talk>,
}

/// Messages with their bodies, in the order of their places.
type Talk = Vec<(RouteHeader, Vec<u8>)>;

#[derive(Debug, Default)]
struct Members {
    all: Vec<UserId>,
    removed: Vec<UserId>,
    epoch: u64,
}

const fn pair(one: UserId, other: UserId) -> (UserId, UserId) {
    if one.0 < other.0 {
        (one, other)
    } else {
        (other, one)
    }
}

impl World {
    pub(super) fn keep(&self, route: &RouteHeader, to: UserId, body: &[u8]) {
        let mut life = self.life.lock().expect("no panic");
        let talk = life.talks.entry(pair(route.user, to)).or_default();
        talk.push((*route, body.to_vec()));
    }
}

const fn online(user: UserId) -> PresenceItem {
    PresenceItem {
        user,
        last_seen_s: 0,
        state: PresenceState::Online,
    }
}

impl Connection<'_> {
    /// False: it is none of these.
    pub(super) fn lives(&mut self, frame: Frame<'_>) -> Result<bool, Ended> {
        match frame.known_op() {
            Some(Op::GroupCreate) => self.create(frame)?,
            Some(Op::GroupEdit) => self.edit(frame)?,
            Some(Op::PresenceSub) => self.subscribe(frame)?,
            Some(Op::History) => self.history(frame)?,
            Some(Op::Signal) => {
                let asked = frame.route().ok_or(Ended)?;
                let route = RouteHeader {
                    conv: self.user.0,
                    user: self.user,
                    dev: self.device,
                    ..asked
                };
                let mut out = Vec::new();
                put_signal(&mut out, 0, &route);
                let peer = self.world.user(UserId(asked.conv));
                peer.lock().expect("no panic").write(&out);
            }
            Some(Op::Send) if is_to_group(frame) => self.send_to_group(frame)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn create(&self, frame: Frame<'_>) -> Result<(), Ended> {
        let create = GroupCreate::decode(frame.body()).map_err(|_| Ended)?;
        let number = self.world.next_seq();
        let mut all = create.members;
        all.push(self.user);
        let members = Members {
            all,
            removed: Vec::new(),
            epoch: 1,
        };
        let mut life = self.world.life.lock().expect("no panic");
        life.groups.insert(number, members);
        drop(life);
        self.answer_group(frame.corr(), number, 1);
        Ok(())
    }

    fn answer_group(&self, corr: u32, number: u64, epoch: u64) {
        let group = Group {
            group: GroupId(number),
            epoch,
            ..Group::default()
        };
        let mut out = Vec::new();
        Encoder::new().group(&mut out, corr, false, &group);
        self.answer(&out);
    }

    fn edit(&self, frame: Frame<'_>) -> Result<(), Ended> {
        let asked = frame.route().ok_or(Ended)?;
        let edit = GroupEdit::decode(frame.body()).map_err(|_| Ended)?;
        let member = edit.members.first().ok_or(Ended)?.user;
        let mut life = self.world.life.lock().expect("no panic");
        let group = life.groups.get_mut(&asked.conv).ok_or(Ended)?;
        let mut told = group.all.clone();
        group.epoch += 1;
        if edit.action == GroupAction::ADD {
            group.all.push(member);
            group.removed.retain(|user| *user != member);
            told.push(member);
        } else {
            group.all.retain(|user| *user != member);
            group.removed.push(member);
        }
        let event = GroupEvent {
            epoch: group.epoch,
            action: edit.action,
            members: edit.members,
            ..GroupEvent::default()
        };
        let route = RouteHeader {
            conv_seq: ConvSeq(self.world.next_seq()),
            user: self.user,
            dev: self.device,
            ..asked
        };
        let mut encoder = Encoder::new();
        let body = encoder.group_event(&event);
        for user in told.into_iter().filter(|user| *user != self.user) {
            let user = self.world.user(user);
            let mut user = user.lock().expect("no panic");
            user.push(self.world, Op::GroupEvent, route, body);
        }
        let epoch = group.epoch;
        drop(life);
        self.answer_group(frame.corr(), asked.conv, epoch);
        Ok(())
    }

    /// In one order for all: nobody else writes to the groups meanwhile.
    fn send_to_group(&self, frame: Frame<'_>) -> Result<(), Ended> {
        let asked = frame.route().ok_or(Ended)?;
        let world = self.world;
        let life = world.life.lock().expect("no panic");
        let group = life.groups.get(&asked.conv).ok_or(Ended)?;
        let place = ConvSeq(world.next_seq());
        let route = RouteHeader {
            seq: Seq(0),
            user: self.user,
            dev: self.device,
            conv_seq: place,
            ..asked
        };
        let strays = match world.fault {
            Fault::AfterRemoval => &group.removed[..],
            _ => &[],
        };
        for member in group
            .all
            .iter()
            .chain(strays)
            .filter(|user| **user != self.user)
        {
            let member = world.user(*member);
            let mut member = member.lock().expect("no panic");
            let chosen = member.received % 4 == 1;
            member.received += 1;
            self.deliver(&mut member, route, frame.body(), chosen);
        }
        drop(life);
        let mut out = Vec::new();
        encode::put_sent(&mut out, frame.corr(), place, false);
        self.answer(&out);
        Ok(())
    }

    fn subscribe(&self, frame: Frame<'_>) -> Result<(), Ended> {
        let sub = PresenceSub::decode(frame.body()).map_err(|_| Ended)?;
        let items: Vec<PresenceItem> = sub.add.iter().map(|user| online(*user)).collect();
        let mut out = Vec::new();
        Encoder::new().presence(&mut out, frame.corr(), &items);
        // One of them has just changed.
        Encoder::new().presence(&mut out, 0, &items[..1]);
        self.answer(&out);
        Ok(())
    }

    fn history(&self, frame: Frame<'_>) -> Result<(), Ended> {
        let get = HistoryGet::decode(frame.body()).map_err(|_| Ended)?;
        let life = self.world.life.lock().expect("no panic");
        let talk = life.talks.get(&pair(self.user, UserId(get.conv)));
        let newest = talk.into_iter().flatten().rev();
        let mut page: Vec<_> = newest.take(usize::from(get.limit)).collect();
        if self.world.fault == Fault::OldestFirst {
            page.reverse();
        }
        let mut out = Vec::new();
        let flags = Flags::REPLY | Flags::MORE;
        for (route, body) in page {
            let (op, corr) = (Op::Deliver as u8, frame.corr());
            encode::put_routed(&mut out, op, flags, corr, 0, route, body);
        }
        drop(life);
        Encoder::new().history_end(&mut out, frame.corr(), &HistoryEnd::default());
        self.answer(&out);
        Ok(())
    }
}

fn is_to_group(frame: Frame<'_>) -> bool {
    frame
        .route()
        .is_some_and(|route| route.conv_kind == ConvKind::GROUP)
}

impl User {
    /// An entry of the inbox.
    pub(super) fn push(&mut self, world: &World, op: Op, route: RouteHeader, body: &[u8]) {
        let route = RouteHeader {
            seq: Seq(world.next_seq()),
            ..route
        };
        let mut frame = Vec::new();
        encode::put_routed(&mut frame, op as u8, Flags::NONE, 0, 0, &route, body);
        self.write(&frame);
        self.inbox.push(super::Entry { route, frame });
    }
}
