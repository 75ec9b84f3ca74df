//! Messages of groups that were on their way to members when the last process ended.

use super::{CEILING_PATIENCE, StartError, ask};
use portico_backend::{
    Backend, Error, Kind,
    messages::{Cmd, Messages, Reply},
};
use portico_core::{ShardId, conv_home};
use portico_wire::ids::{ConvId, ConvSeq};
use std::sync::Arc;

/// Markers in one page.
const PAGE: u32 = 1_024;

/// The markers in the store, by the home of their conversation. Ask before anything else is in flight.
pub(super) fn open(
    messages: &Arc<dyn Backend<Messages>>,
    shards: usize,
) -> Result<Vec<Vec<(ConvId, ConvSeq)>>, StartError> {
    let mut open = vec![Vec::new(); shards];
    let mut after = None;
    loop {
        let cmd = Cmd::FanOuts { after, limit: PAGE };
        let page = match ask(messages, cmd, CEILING_PATIENCE) {
            Ok(Reply::FanOuts(page)) => page,
            Ok(_) => {
                let detail = "the adapter gave another answer than the one it was asked for";
                return Err(StartError::NoFanOuts(Error::new(Kind::Invalid, detail)));
            }
            Err(error) => return Err(StartError::NoFanOuts(error)),
        };
        let Some(last) = page.last().copied() else {
            return Ok(open);
        };
        after = Some(last);
        for (conv, conv_seq) in page {
            // Bounded by `SHARDS_MAX`.
            let ShardId(home) = conv_home(conv, shards as u16);
            open[usize::from(home)].push((conv, conv_seq));
        }
    }
}
