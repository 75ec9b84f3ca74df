//! Where the kernel writes the addresses of those it accepts: a place per ACCEPT in flight. (A multishot
//! one has a single place for all its connections, which is of no use.)

use std::{
    mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// A place of its own on the heap: it stays where it is while the list grows.
pub(super) struct Name {
    pub(super) address: libc::sockaddr_storage,
    pub(super) len: libc::socklen_t,
}

#[derive(Default)]
#[allow(
    clippy::vec_box,
    reason = "the kernel holds their addresses while the list grows"
)]
pub(super) struct Names {
    all: Vec<Box<Name>>,
    free: Vec<u32>,
}

impl Names {
    /// A place that is lent to the kernel until [`Self::take`].
    pub(super) fn lend(&mut self) -> (u32, &mut Name) {
        let at = self.free.pop().unwrap_or_else(|| {
            self.all.push(Box::new(Name {
                // SAFETY: a plain C structure of integers, for which zeros are a value.
                address: unsafe { mem::zeroed() },
                len: 0,
            }));
            (self.all.len() - 1) as u32
        });
        let name = &mut self.all[at as usize];
        name.len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        name.address.ss_family = 0;
        (at, name)
    }

    /// What the kernel has written there, after the last completion.
    pub(super) fn take(&mut self, at: u32) -> Option<IpAddr> {
        let name = self.all.get(at as usize)?;
        self.free.push(at);
        let start = &raw const name.address;
        let len = name.len as usize;
        match i32::from(name.address.ss_family) {
            libc::AF_INET if len >= size_of::<libc::sockaddr_in>() => {
                // SAFETY: the family says which structure it is, and the place is large enough and
                // aligned for each.
                let address = unsafe { &*start.cast::<libc::sockaddr_in>() };
                Some(Ipv4Addr::from_bits(u32::from_be(address.sin_addr.s_addr)).into())
            }
            libc::AF_INET6 if len >= size_of::<libc::sockaddr_in6>() => {
                // SAFETY: as above.
                let address = unsafe { &*start.cast::<libc::sockaddr_in6>() };
                Some(Ipv6Addr::from(address.sin6_addr.s6_addr).into())
            }
            _ => None,
        }
    }

    /// How many have been lent at a time.
    pub(super) fn count(&self) -> u32 {
        self.all.len() as u32
    }
}
