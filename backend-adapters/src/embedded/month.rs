//! Calendar months in UTC: the time partitions of the store.
//!
//! A sequence number is a count of microseconds since 1970, so it says by itself in which
//! partition its row lies. Nothing else does.

use crate::messages::SEQ_MAX;

pub(super) const DAY_US: u64 = 24 * 3_600 * 1_000_000;

/// Months since January of the year 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Month(u32);

impl Month {
    /// The month of a sequence number; numbers past the greatest valid one count as that.
    pub(super) fn of(seq: u64) -> Self {
        // The year begins in March here, so the leap day is the last of its year, and the lengths
        // of the months follow the pattern 31 30 31 30 31.
        let days = seq.min(SEQ_MAX) / DAY_US + DAYS_FROM_YEAR_0;
        let (era, day) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - days_before(year);
        let month = (5 * day + 2) / 153;
        let months = (era * 400 + year) * 12 + month + MARCH;
        Self(u32::try_from(months).unwrap_or(u32::MAX))
    }

    /// The first microsecond of the month; 0 for months before 1970.
    pub(super) fn start(self) -> u64 {
        let months = u64::from(self.0).saturating_sub(MARCH);
        let (years, month) = (months / 12, months % 12);
        let (era, year) = (years / 400, years % 400);
        let days = era * DAYS_PER_ERA + days_before(year) + (153 * month + 2) / 5;
        days.saturating_sub(DAYS_FROM_YEAR_0) * DAY_US
    }

    pub(super) const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// As in the names of partitions: `2026-11`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (year, month) = text.split_once('-')?;
        let digits =
            |text: &str, len| text.len() == len && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(year, 4) || !digits(month, 2) {
            return None;
        }
        let (year, month): (u32, u32) = (year.parse().ok()?, month.parse().ok()?);
        (1..=12)
            .contains(&month)
            .then(|| Self(year * 12 + month - 1))
    }
}

impl std::fmt::Display for Month {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04}-{:02}", self.0 / 12, self.0 % 12 + 1)
    }
}

/// From the first of March of the year 0 to the first of January 1970.
const DAYS_FROM_YEAR_0: u64 = 719_468;
/// The calendar repeats after 400 years.
const DAYS_PER_ERA: u64 = 146_097;
/// The distance of the first of March from the first of January, in months.
const MARCH: u64 = 2;

/// Days of the years of an era before `year`.
const fn days_before(year: u64) -> u64 {
    365 * year + year / 4 - year / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_are_those_of_the_calendar() {
        for (seconds, name) in [
            (0, "1970-01"),
            (951_782_400, "2000-02"),   // the 29th
            (951_868_800, "2000-03"),   // the day after
            (1_709_251_199, "2024-02"), // the last second of the 29th
            (1_764_547_200, "2025-12"),
            (1_795_564_800, "2026-11"),
            (4_107_542_400, "2100-03"), // no leap day in 2100
            (4_107_542_399, "2100-02"),
        ] {
            assert_eq!(Month::of(seconds * 1_000_000).to_string(), name);
        }
        assert_eq!(Month::of(SEQ_MAX).to_string(), "9999-12");
        assert_eq!(Month::of(u64::MAX).to_string(), "9999-12");
    }

    #[test]
    fn each_month_begins_where_the_one_before_ends() {
        let mut month = Month::of(0);
        while month.start() < SEQ_MAX {
            assert_eq!(Month::of(month.start()), month);
            assert_eq!(Month::of(month.next().start() - 1), month);
            assert_eq!(Month::parse(&month.to_string()), Some(month));
            month = month.next();
        }
        assert_eq!(month.to_string(), "10000-01");
    }

    #[test]
    fn other_names_are_no_months() {
        for text in [
            "",
            "2026",
            "2026-13",
            "2026-00",
            "226-011",
            "2026-1",
            "+226-11",
            "2026-11-1",
        ] {
            assert_eq!(Month::parse(text), None, "{text:?}");
        }
    }
}
