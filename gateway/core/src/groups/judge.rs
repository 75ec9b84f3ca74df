//! Who may do what to a group: pure functions from a group and a wish to an event, or to the reason why
//! not.

use super::{error::GroupError, group::Group, invite};
use portico_wire::{
    ids::UserId,
    message::group::{GroupAction, GroupCreate, GroupEdit, GroupEvent, GroupRules, Member, Role},
};

/// What the edit would make, if it may be made. `None`: the group is like that already.
pub(crate) type Verdict<'a> = Result<Option<GroupEvent<'a>>, GroupError>;

/// Members are added by their creator without asking them; `members_max` is what the gateway allows.
pub(crate) fn create<'a>(
    creator: UserId,
    wish: &GroupCreate<'a>,
    members_max: u16,
) -> Result<GroupEvent<'a>, GroupError> {
    if wish.max_members == 0 || wish.max_members > members_max {
        return Err(GroupError::BadMax);
    }
    known_rules(wish.rules)?;
    let owner = Member {
        user: creator,
        joined_s: 0,
        role: Role::OWNER,
    };
    let mut members = vec![owner];
    for user in &wish.members {
        members.push(Member {
            user: *user,
            joined_s: 0,
            role: Role::MEMBER,
        });
    }
    members.sort_by_key(|member| (member.user, member.role.0 == 0));
    members.dedup_by_key(|member| member.user);
    if members.iter().any(|member| !member.user.is_valid()) {
        return Err(GroupError::BadMember);
    }
    if members.len() > usize::from(wish.max_members) {
        return Err(GroupError::Full);
    }
    let some = !wish.title.is_empty();
    let title = some.then_some(wish.title);
    let some = !wish.sealed_info.is_empty();
    Ok(GroupEvent {
        action: GroupAction::CREATE,
        members,
        title,
        sealed_info: some.then_some(wish.sealed_info),
        rules: wish.rules,
        max_members: wish.max_members,
        group_type: wish.group_type,
        ..GroupEvent::default()
    })
}

/// May this user say something here, relying on that epoch?
pub(crate) fn send(group: &Group, sender: UserId, epoch: u64) -> Result<(), GroupError> {
    let role = role(group, sender)?;
    if group.rules.contains(GroupRules::ADMINS_SEND) && role < Role::ADMIN {
        return Err(GroupError::MaySend);
    }
    current(group, epoch)
}

/// The edit, relying on that epoch (0 = any).
pub(crate) fn edit<'a>(
    group: &Group,
    actor: UserId,
    epoch: u64,
    wish: &GroupEdit<'a>,
) -> Verdict<'a> {
    if wish.action == GroupAction::JOIN {
        return join(group, actor, epoch, wish);
    }
    let role = role(group, actor)?;
    current(group, epoch)?;
    match wish.action {
        GroupAction::ADD => add(group, role, wish),
        GroupAction::REMOVE => remove(group, actor, role, wish),
        GroupAction::LEAVE => leave(group, actor, role),
        GroupAction::SET_ROLE => set_role(group, actor, role, wish),
        GroupAction::SET_INFO => set_info(group, role, wish),
        GroupAction::SET_RULES => {
            admins(role)?;
            known_rules(wish.rules)?;
            let changed = wish.rules != group.rules;
            Ok(changed.then(|| GroupEvent {
                action: GroupAction::SET_RULES,
                rules: wish.rules,
                ..GroupEvent::default()
            }))
        }
        GroupAction::SET_INVITE => {
            admins(role)?;
            let has_invite = wish.invite.is_some();
            let changed = has_invite || !group.invite.is_empty();
            Ok(changed.then(|| GroupEvent {
                action: GroupAction::SET_INVITE,
                has_invite,
                ..GroupEvent::default()
            }))
        }
        GroupAction::DELETE => {
            owner(role)?;
            Ok(Some(event(GroupAction::DELETE, Vec::new())))
        }
        _ => Err(GroupError::BadAction),
    }
}

fn join<'a>(group: &Group, actor: UserId, epoch: u64, wish: &GroupEdit<'a>) -> Verdict<'a> {
    if !group.is_live() {
        return Err(GroupError::NotFound);
    }
    let code = wish.invite.unwrap_or_default();
    if code.is_empty() || !invite::is_same(code, &group.invite) {
        return Err(GroupError::BadInvite);
    }
    if group.standing(actor).is_some() {
        return Ok(None);
    }
    current(group, epoch)?;
    room(group, 1)?;
    Ok(Some(event(
        GroupAction::JOIN,
        vec![Member {
            user: actor,
            ..Member::default()
        }],
    )))
}

fn add<'a>(group: &Group, role: Role, wish: &GroupEdit<'a>) -> Verdict<'a> {
    if group.rules.contains(GroupRules::ADMINS_ADD) && role < Role::ADMIN {
        return Err(GroupError::MayAdd);
    }
    if wish.members.is_empty() {
        return Err(GroupError::Nothing);
    }
    if wish.members.iter().any(|member| !member.user.is_valid()) {
        return Err(GroupError::BadMember);
    }
    if wish
        .members
        .iter()
        .any(|member| member.role != Role::MEMBER)
    {
        return Err(GroupError::BadRole);
    }
    let mut fresh: Vec<Member> = wish.members.iter().map(named).collect();
    fresh.retain(|member| group.standing(member.user).is_none());
    fresh.sort_by_key(|member| member.user);
    fresh.dedup_by_key(|member| member.user);
    if fresh.is_empty() {
        return Ok(None);
    }
    room(group, fresh.len())?;
    Ok(Some(event(GroupAction::ADD, fresh)))
}

fn remove<'a>(group: &Group, actor: UserId, role: Role, wish: &GroupEdit<'a>) -> Verdict<'a> {
    admins(role)?;
    let mut gone = Vec::new();
    for member in &wish.members {
        let Some(standing) = group.standing(member.user) else {
            continue;
        };
        if member.user == actor {
            // LEAVE is for that, and has its own rule for the owner.
            return Err(GroupError::BadMember);
        }
        if standing.role() >= Role::ADMIN && role < Role::OWNER {
            return Err(GroupError::OwnerOnly);
        }
        gone.push(named(member));
    }
    if wish.members.is_empty() {
        return Err(GroupError::Nothing);
    }
    gone.sort_by_key(|member| member.user);
    gone.dedup_by_key(|member| member.user);
    if gone.is_empty() {
        return Err(GroupError::NobodyFound);
    }
    Ok(Some(event(GroupAction::REMOVE, gone)))
}

fn leave<'a>(group: &Group, actor: UserId, role: Role) -> Verdict<'a> {
    if role == Role::OWNER {
        if group.standings.len() > 1 {
            return Err(GroupError::OwnerStays);
        }
        // Nobody is left who could do anything with it.
        return Ok(Some(event(GroupAction::DELETE, Vec::new())));
    }
    Ok(Some(event(
        GroupAction::LEAVE,
        vec![Member {
            user: actor,
            ..Member::default()
        }],
    )))
}

fn set_role<'a>(group: &Group, actor: UserId, role: Role, wish: &GroupEdit<'a>) -> Verdict<'a> {
    owner(role)?;
    if wish.members.is_empty() {
        return Err(GroupError::Nothing);
    }
    let mut changed = Vec::new();
    let transfer = wish.members.iter().any(|m| m.role == Role::OWNER);
    if transfer && wish.members.len() > 1 {
        return Err(GroupError::BadRole);
    }
    for member in &wish.members {
        if member.role > Role::OWNER || (member.user == actor && member.role != Role::OWNER) {
            // The owner becomes something else by making somebody else the owner.
            return Err(GroupError::BadRole);
        }
        let Some(standing) = group.standing(member.user) else {
            return Err(GroupError::NobodyFound);
        };
        if standing.role() != member.role {
            changed.push(Member {
                joined_s: 0,
                ..*member
            });
        }
    }
    if changed.is_empty() {
        return Ok(None);
    }
    if transfer {
        changed.push(Member {
            user: actor,
            joined_s: 0,
            role: Role::ADMIN,
        });
    }
    Ok(Some(event(GroupAction::SET_ROLE, changed)))
}

fn set_info<'a>(group: &Group, role: Role, wish: &GroupEdit<'a>) -> Verdict<'a> {
    if group.rules.contains(GroupRules::ADMINS_EDIT_INFO) && role < Role::ADMIN {
        return Err(GroupError::MayEditInfo);
    }
    if wish.title.is_none() && wish.sealed_info.is_none() {
        return Err(GroupError::Nothing);
    }
    Ok(Some(GroupEvent {
        action: GroupAction::SET_INFO,
        title: wish.title,
        sealed_info: wish.sealed_info,
        ..GroupEvent::default()
    }))
}

pub(crate) fn role(group: &Group, user: UserId) -> Result<Role, GroupError> {
    if !group.is_live() {
        return Err(GroupError::NotFound);
    }
    let standing = group.standing(user).ok_or(GroupError::NotMember)?;
    Ok(standing.role())
}

const fn event<'a>(action: GroupAction, members: Vec<Member>) -> GroupEvent<'a> {
    GroupEvent {
        epoch: 0,
        action,
        members,
        title: None,
        sealed_info: None,
        rules: GroupRules::NONE,
        max_members: 0,
        group_type: 0,
        has_invite: false,
    }
}

fn named(member: &Member) -> Member {
    Member {
        user: member.user,
        ..Member::default()
    }
}

fn current(group: &Group, epoch: u64) -> Result<(), GroupError> {
    if epoch == 0 || epoch == group.epoch {
        Ok(())
    } else {
        Err(GroupError::Stale)
    }
}

fn room(group: &Group, more: usize) -> Result<(), GroupError> {
    if group.standings.len() + more > usize::from(group.max_members) {
        Err(GroupError::Full)
    } else {
        Ok(())
    }
}

fn admins(role: Role) -> Result<(), GroupError> {
    if role < Role::ADMIN {
        Err(GroupError::AdminsOnly)
    } else {
        Ok(())
    }
}

fn owner(role: Role) -> Result<(), GroupError> {
    if role < Role::OWNER {
        Err(GroupError::OwnerOnly)
    } else {
        Ok(())
    }
}

fn known_rules(rules: GroupRules) -> Result<(), GroupError> {
    if rules.0 & !GroupRules::ALL.0 == 0 {
        Ok(())
    } else {
        Err(GroupError::BadRules)
    }
}
