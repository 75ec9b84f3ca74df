//! Which worker gets how many users.

/// Users for each worker, in order: by threads, but no more than `room` says. All but the last get
/// multiples of `unit`, so that pairs and groups stay together. `None` when there is not room for
/// all, or when a worker would not get even one unit.
pub(super) fn divide(users: u32, unit: u32, threads: &[u32], room: &[u64]) -> Option<Vec<u32>> {
    let whole = |users: u32| users / unit * unit;
    let room: Vec<u32> = room
        .iter()
        .map(|room| whole(u32::try_from(*room).unwrap_or(u32::MAX)))
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
        let fair = |at: &usize| whole((u64::from(left) * weight(at) / weights) as u32);
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
    // What rounding has left, in units, to whoever has room; the last worker takes a broken one.
    for (share, room) in shares.iter_mut().zip(&room) {
        let more = whole(left).min(*room - *share);
        *share += more;
        left -= more;
    }
    if left > 0 && left < unit {
        let (share, room) = shares.last_mut().zip(room.last())?;
        if *room - *share >= left {
            *share += left;
            left = 0;
        }
    }
    let all = left == 0 && shares.iter().all(|share| *share >= unit);
    all.then_some(shares)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_shared_by_threads_and_in_pairs() {
        assert_eq!(divide(100, 2, &[1, 1], &[1_000; 2]), Some(vec![50, 50]));
        assert_eq!(divide(100, 2, &[1, 3], &[1_000; 2]), Some(vec![26, 74]));
        assert_eq!(divide(101, 2, &[1, 1], &[1_000; 2]), Some(vec![50, 51]));
        assert_eq!(divide(4, 2, &[1, 1], &[1_000; 2]), Some(vec![2, 2]));
    }

    #[test]
    fn a_worker_with_little_room_leaves_the_rest_to_others() {
        assert_eq!(
            divide(60_000, 2, &[1; 4], &[19_936, 5_000, 19_936, 19_936]),
            Some(vec![18_336, 5_000, 18_332, 18_332])
        );
        assert_eq!(divide(100, 2, &[1, 1], &[21, 1_000]), Some(vec![20, 80]));
        assert_eq!(divide(40, 2, &[1, 1], &[20, 20]), Some(vec![20, 20]));
    }

    #[test]
    fn groups_stay_together() {
        assert_eq!(
            divide(1_010, 101, &[1, 1], &[1_000; 2]),
            Some(vec![505, 505])
        );
        assert_eq!(
            divide(1_111, 101, &[1, 1], &[2_000; 2]),
            Some(vec![606, 505])
        );
        assert_eq!(
            divide(1_000, 101, &[1, 1], &[2_000; 2]),
            Some(vec![505, 495])
        );
        assert_eq!(divide(1_010, 101, &[1, 1], &[100, 2_000]), None);
    }

    #[test]
    fn too_many_users_and_too_few_are_refused() {
        assert_eq!(divide(42, 2, &[1, 1], &[20, 20]), None);
        assert_eq!(divide(3, 2, &[1, 1], &[20, 20]), None);
        assert_eq!(divide(2, 2, &[], &[]), None);
        assert_eq!(divide(100, 2, &[1, 1], &[1, 1_000]), None);
    }
}
