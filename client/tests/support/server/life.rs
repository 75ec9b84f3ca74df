//! Groups, presence, signals and history of the gateway in memory.

use super::{Connection, World, now_us};
use crate::support::{Peer, Seen};
use portico_wire::{
    Flags, Op, RouteHeader,
    encode::{put_done, put_routed, put_sent},
    frame::ConvKind,
    ids::{ConvSeq, DeviceId, GroupId, Seq, UserId},
    message::{
        group::{Group, GroupAction, GroupCreate, GroupEdit, GroupEvent, GroupGet, Member, Role},
        history::{HistoryEnd, HistoryGet},
        people::{PresenceItem, PresenceState, PresenceSub},
    },
};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct Life {
    groups: BTreeMap<u64, Team>,
}

#[derive(Clone, Debug)]
struct Team {
    title: String,
    members: Vec<Member>,
    said: Vec<(RouteHeader, Vec<u8>)>,
}

impl Team {
    fn put(&self, peer: &mut Peer, corr: u32, number: u64) {
        let group = Group {
            group: GroupId(number),
            epoch: 1,
            members: Some(self.members.clone()),
            title: &self.title,
            ..Group::default()
        };
        peer.encoder.group(&mut peer.out, corr, false, &group);
    }

    fn members(&self) -> Vec<u64> {
        self.members.iter().map(|member| member.user.0).collect()
    }
}

fn member(user: u64, role: Role) -> Member {
    Member {
        user: UserId(user),
        joined_s: 1,
        role,
    }
}

fn online(world: &World, user: u64) -> PresenceItem {
    let is_online = world.online.keys().any(|device| device.0 == user);
    PresenceItem {
        user: UserId(user),
        last_seen_s: if is_online { 0 } else { 5 * 3_600 },
        state: if is_online {
            PresenceState::Online
        } else {
            PresenceState::Offline
        },
    }
}

impl Connection {
    /// False: it is none of these.
    pub(super) fn lives(&mut self, world: &mut World, device: (u64, u16), seen: &Seen) -> bool {
        let (corr, to) = (seen.corr, seen.route.conv);
        match seen.op {
            Op::GroupGet => {
                let get = GroupGet::decode(&seen.body).unwrap();
                let teams = &world.life.groups;
                if let Some(team) = teams.get(&get.group.0) {
                    team.put(&mut self.peer, corr, get.group.0);
                } else {
                    put_done(&mut self.peer.out, corr, 0);
                }
            }
            Op::GroupCreate => {
                let create = GroupCreate::decode(&seen.body).unwrap();
                let mut members = vec![member(device.0, Role::OWNER)];
                members.extend(
                    create
                        .members
                        .iter()
                        .map(|user| member(user.0, Role::MEMBER)),
                );
                let number = 100 + world.life.groups.len() as u64;
                let team = Team {
                    title: create.title.to_owned(),
                    members,
                    said: Vec::new(),
                };
                team.put(&mut self.peer, corr, number);
                world.life.groups.insert(number, team);
                self.tell(world, device, number, GroupAction::CREATE, Vec::new());
            }
            Op::GroupEdit => {
                let edit = GroupEdit::decode(&seen.body).unwrap();
                let team = world.life.groups.get_mut(&to).unwrap();
                for changed in &edit.members {
                    team.members.retain(|member| member.user != changed.user);
                    if edit.action == GroupAction::ADD {
                        team.members.push(member(changed.user.0, Role::MEMBER));
                    }
                }
                team.clone().put(&mut self.peer, corr, to);
                self.tell(world, device, to, edit.action, edit.members);
            }
            Op::PresenceSub => {
                let sub = PresenceSub::decode(&seen.body).unwrap();
                let items: Vec<_> = sub.add.iter().map(|user| online(world, user.0)).collect();
                let peer = &mut self.peer;
                peer.encoder.presence(&mut peer.out, corr, &items);
            }
            Op::History => {
                let get = HistoryGet::decode(&seen.body).unwrap();
                let said = world
                    .life
                    .groups
                    .get(&get.conv)
                    .map(|team| team.said.clone());
                let said = said.unwrap_or_default();
                let flags = Flags::REPLY | Flags::MORE;
                for (route, body) in said.iter().rev().take(usize::from(get.limit)) {
                    let op = Op::Deliver as u8;
                    put_routed(&mut self.peer.out, op, flags, corr, 0, route, body);
                }
                let peer = &mut self.peer;
                let end = HistoryEnd::default();
                peer.encoder.history_end(&mut peer.out, corr, &end);
            }
            Op::Signal => {
                let is_group = seen.route.conv_kind == ConvKind::GROUP;
                let route = RouteHeader {
                    conv: if is_group { to } else { device.0 },
                    user: UserId(device.0),
                    ..seen.route
                };
                let whom = match world.life.groups.get(&to).filter(|_| is_group) {
                    Some(team) => team.members(),
                    None => vec![to],
                };
                for user in whom.into_iter().filter(|user| *user != device.0) {
                    let (op, flags) = (Op::Signal as u8, Flags::EPHEMERAL);
                    world.push_to(user, |out| {
                        put_routed(&mut out.out, op, flags, 0, 0, &route, &[]);
                    });
                }
            }
            Op::Send if seen.route.conv_kind == ConvKind::GROUP => {
                let place = world.next_seq();
                let route = RouteHeader {
                    user: UserId(device.0),
                    dev: DeviceId(device.1),
                    conv_seq: ConvSeq(place),
                    ..seen.route
                };
                put_sent(&mut self.peer.out, corr, ConvSeq(place), false);
                self.spread(world, device, Op::Deliver, route, &seen.body);
                let team = world.life.groups.get_mut(&to).unwrap();
                team.said.push((route, seen.body.clone()));
                let of = team.members.len() as u32 - 1;
                let route = RouteHeader {
                    kind: portico_wire::frame::receipt_kind::DELIVERED,
                    user: UserId(0),
                    ttl_s: of << 16 | 1,
                    ..route
                };
                let at_s = (now_us() / 1_000_000) as u32;
                let (op, flags) = (Op::Receipt as u8, Flags::NONE);
                put_routed(&mut self.peer.out, op, flags, 0, at_s, &route, &[]);
            }
            _ => return false,
        }
        true
    }

    fn tell(
        &mut self,
        world: &mut World,
        by: (u64, u16),
        group: u64,
        action: GroupAction,
        members: Vec<Member>,
    ) {
        let event = GroupEvent {
            epoch: 1,
            action,
            members,
            ..GroupEvent::default()
        };
        let body = self.peer.encoder.group_event(&event).to_vec();
        let route = RouteHeader {
            conv: group,
            conv_kind: ConvKind::GROUP,
            conv_seq: ConvSeq(world.next_seq()),
            user: UserId(by.0),
            dev: DeviceId(by.1),
            ..RouteHeader::default()
        };
        self.spread(world, by, Op::GroupEvent, route, &body);
    }

    /// To all members but the one who did it.
    fn spread(&self, world: &mut World, by: (u64, u16), op: Op, route: RouteHeader, body: &[u8]) {
        for user in world.life.groups[&route.conv].members() {
            let seq = Seq(world.next_seq());
            let route = RouteHeader { seq, ..route };
            if user != by.0 {
                world.push_to(user, |out| {
                    put_routed(&mut out.out, op as u8, Flags::NONE, 0, 0, &route, body);
                });
            }
        }
    }
}
