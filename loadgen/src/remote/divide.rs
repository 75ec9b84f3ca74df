//! Which worker gets how many users.

/// Users for each worker, in order: by threads, but no more than `room` says. All but the last get
/// an even number, so that pairs stay together. `None` when there is not room for all, or too few
/// users for each to have two.
pub(super) fn divide(users: u32, threads: &[u32], room: &[u64]) -> Option<Vec<u32>> {
    let room: Vec<u32> = room
        .iter()
        .map(|room| u32::try_from(*room).unwrap_or(u32::MAX) & !1)
        .collect();
    let mut shares = vec![0_u32; threads.len()];
    let mut open: Vec<usize> = (0..threads.len()).collect();
    let mut left = users;
    // Each round fills at least one worker, or is the last.
    loop {
        let weight = |at: &usize| u64::from(threads[*at].max(1));
        let weights: u64 = open.iter().map(weight).sum();
        if weights == 0 {
            break;
        }
        let fair = |at: &usize| (u64::from(left) * weight(at) / weights) as u32 & !1;
        let full: Vec<usize> = open
            .iter()
            .copied()
            .filter(|at| fair(at) > room[*at])
            .collect();
        if full.is_empty() {
            let given: Vec<(usize, u32)> = open.iter().map(|at| (*at, fair(at))).collect();
            for (at, share) in given {
                shares[at] = share;
                left -= share;
            }
            break;
        }
        for at in &full {
            shares[*at] = room[*at];
            left -= room[*at];
        }
        open.retain(|at| !full.contains(at));
    }
    // What rounding has left, in pairs, to whoever has room; the last worker may take a single one.
    for (share, room) in shares.iter_mut().zip(&room) {
        while left >= 2 && *share + 2 <= *room {
            *share += 2;
            left -= 2;
            if left < 2 {
                break;
            }
        }
    }
    if left == 1 {
        let (share, room) = shares.last_mut().zip(room.last())?;
        if *share < *room {
            *share += 1;
            left = 0;
        }
    }
    let all = left == 0 && shares.iter().all(|share| *share >= 2);
    all.then_some(shares)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_shared_by_threads_and_in_pairs() {
        assert_eq!(divide(100, &[1, 1], &[1_000; 2]), Some(vec![50, 50]));
        assert_eq!(divide(100, &[1, 3], &[1_000; 2]), Some(vec![26, 74]));
        assert_eq!(divide(101, &[1, 1], &[1_000; 2]), Some(vec![50, 51]));
        assert_eq!(divide(4, &[1, 1], &[1_000; 2]), Some(vec![2, 2]));
    }

    #[test]
    fn a_worker_with_little_room_leaves_the_rest_to_others() {
        assert_eq!(
            divide(60_000, &[1; 4], &[19_936, 5_000, 19_936, 19_936]),
            Some(vec![18_336, 5_000, 18_332, 18_332])
        );
        assert_eq!(divide(100, &[1, 1], &[21, 1_000]), Some(vec![20, 80]));
        assert_eq!(divide(40, &[1, 1], &[20, 20]), Some(vec![20, 20]));
    }

    #[test]
    fn too_many_users_and_too_few_are_refused() {
        assert_eq!(divide(42, &[1, 1], &[20, 20]), None);
        assert_eq!(divide(3, &[1, 1], &[20, 20]), None);
        assert_eq!(divide(2, &[], &[]), None);
        assert_eq!(divide(100, &[1, 1], &[1, 1_000]), None);
    }
}
