//! Whom the shards have to be told of at their start: users who have changed what they allow others.

use super::{StartError, ask};
use bytes::Bytes;
use portico_backend::{
    Backend, Error, Kind,
    records::{Cmd, PAGE_ROWS_MAX, Records, Reply, Table},
};
use portico_core::{RESTRICTIONS, restricted_user, user_home};
use portico_wire::ids::UserId;
use std::{sync::Arc, time::Duration};

/// For one page of the store.
const PATIENCE: Duration = Duration::from_secs(30);

/// Those users, by the shard of so many at which each is at home.
pub(super) fn restricted(
    records: &Arc<dyn Backend<Records>>,
    shards: usize,
) -> Result<Vec<Vec<UserId>>, StartError> {
    let mut users = vec![Vec::new(); shards];
    let mut after = Bytes::new();
    loop {
        let scan = Cmd::Scan {
            table: Table(RESTRICTIONS.0),
            prefix: Bytes::new(),
            after: after.clone(),
            limit: PAGE_ROWS_MAX,
        };
        let rows = match ask(records, scan, PATIENCE) {
            Ok(Reply::Rows(rows)) => rows,
            Ok(_) => {
                let detail = "the adapter gave another answer than the one it was asked for";
                return Err(StartError::NoSettings(Error::new(Kind::Invalid, detail)));
            }
            Err(error) => return Err(StartError::NoSettings(error)),
        };
        let Some(last) = rows.last() else {
            return Ok(users);
        };
        after = last.key.clone();
        for row in &rows {
            // Fits: `SHARDS_MAX`.
            let home = restricted_user(&row.key).map(|user| (user_home(user, shards as u16), user));
            if let Some((home, user)) = home
                && let Some(users) = users.get_mut(usize::from(home.0))
            {
                users.push(user);
            }
        }
    }
}
