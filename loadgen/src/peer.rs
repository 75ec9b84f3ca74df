//! Connections of other systems: MQTT 3.1.1, NATS core, Redis publish and subscribe, and the floor.
//! The same plans and the same verifier drive them, so that they are measured like for like.
//!
//! A user has a topic of its own, `u.<user id>`, and subscribes to it at login. A group has the topic
//! `g.<user id of its sender>`: its members subscribe to that one alone, and its sender to none,
//! since nobody writes to them otherwise. Where a connection cannot both hear and speak ([`redis`],
//! [`relay`]) a user who does both has two sockets, and is up when both are.
//!
//! # Does not
//! Send again what was under way when a connection ended: sessions are clean, and such a message
//! counts as unanswered or lost. Queue for a user whose connection is not up.

mod dialect;
mod driver;
mod mqtt;
mod nats;
mod opening;
mod redis;
mod relay;

use crate::fleet::Fleet;
use driver::Driver;
use mqtt::Mqtt;
use portico_client::many::Clock;
use std::{io, net::SocketAddr};

/// What the peers speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum System {
    MqttQos0,
    MqttQos1,
    Nats,
    Redis,
    Relay,
}

/// What a worker's connections are made from.
#[derive(Clone, Debug)]
pub(crate) struct PeerOpening {
    pub clock: Clock,
    pub target: SocketAddr,
    /// Of all workers' users, those before the first of this one.
    pub users_before: usize,
    pub first_user: u64,
    pub users: u32,
    /// Groups of one sender and so many members, one after the other.
    pub members: Option<u32>,
    /// Local ports of one address, to know when another address is needed.
    pub ports_per_source: usize,
    /// Connections opened per second, at most.
    pub connects_per_s: u32,
    /// Seconds between two heartbeats; 0: none.
    pub heartbeat_s: u16,
}

pub(crate) fn open(system: System, opening: &PeerOpening) -> io::Result<Box<dyn Fleet>> {
    let mqtt = |at_least_once| Mqtt {
        at_least_once,
        // The server allows half as much again.
        keep_alive_s: opening.heartbeat_s,
    };
    Ok(match system {
        System::MqttQos0 => Box::new(Driver::open(mqtt(false), opening)?),
        System::MqttQos1 => Box::new(Driver::open(mqtt(true), opening)?),
        System::Nats => Box::new(Driver::open(nats::Nats, opening)?),
        System::Redis => Box::new(Driver::open(redis::Redis, opening)?),
        System::Relay => Box::new(Driver::open(relay::Relay, opening)?),
    })
}

#[cfg(test)]
mod tests;
