//! How many mails one person may get, and in which stretch of time. Pure: the time is passed in.
//!
//! Days and weeks are the calendar's in a time zone; a week begins on Monday (ISO 8601). Which of them it is at the moment of a
//! claim, the database's clock says, so that daemons whose clocks differ agree: a [`Cap`] brings the windows around now.

use std::fmt;

use chrono::{DateTime, Datelike, Days, MappedLocalTime, NaiveDate, NaiveTime, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;

use super::{OverCap, TemplateKind};

/// Windows that a [`Cap`] brings: the last, this one and the next two. A daemon's clock may be wrong by one of them.
const WINDOWS: [i64; 4] = [-1, 0, 1, 2];
/// Local midnight is looked for in these steps where clocks are put forward over it.
const STEP: TimeDelta = TimeDelta::minutes(15);
/// No gap is longer: Samoa left out a day.
const STEPS_MAX: usize = 2 * 24 * 4;

/// How many mails one person may get. Days and weeks are the calendar's, in `EMAIL_TIMEZONE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateLimit {
    /// As many as there are.
    Unlimited,
    /// `N/day`, at least 1.
    PerDay(u32),
    /// `N/week`, at least 1.
    PerWeek(u32),
}

impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlimited => f.write_str("unlimited"),
            Self::PerDay(count) => write!(f, "{count}/day"),
            Self::PerWeek(count) => write!(f, "{count}/week"),
        }
    }
}

/// A limit as it holds for one mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cap {
    /// Which mails count together.
    pub kind: TemplateKind,
    /// Never [`RateLimit::Unlimited`].
    pub limit: RateLimit,
    /// Mails a window.
    pub most: i32,
    /// What becomes of a mail that is over it.
    pub over: OverCap,
    /// First moments of windows in their order, each the end of the one before. The first window is over and the last has not
    /// begun, unless this daemon's clock is wrong by more than a window.
    pub starts: [DateTime<Utc>; WINDOWS.len()],
}

impl RateLimit {
    /// What it means for a mail of this kind at this time; nothing: there is no limit.
    #[must_use]
    pub fn cap(self, kind: TemplateKind, over: OverCap, timezone: Tz, now: DateTime<Utc>) -> Option<Cap> {
        let today = now.with_timezone(&timezone).date_naive();
        let (count, first, days) = match self {
            Self::Unlimited => return None,
            Self::PerDay(count) => (count, today, 1),
            Self::PerWeek(count) => (count, monday(today), 7),
        };
        let starts = WINDOWS.map(|n| first_moment(plus_days(first, n * days), timezone));
        Some(Cap { kind, limit: self, most: i32::try_from(count).unwrap_or(i32::MAX), over, starts })
    }
}

impl Cap {
    /// For people: which limit it is, and where it is set.
    #[must_use]
    pub fn words(&self) -> String {
        let (limit, kind) = (self.limit, self.kind.name());
        format!("the cap of {limit} for {kind} mail (EMAIL_RATE_LIMIT_{})", kind.to_uppercase())
    }
}

fn monday(day: NaiveDate) -> NaiveDate {
    plus_days(day, -i64::from(day.weekday().num_days_from_monday()))
}

fn plus_days(day: NaiveDate, days: i64) -> NaiveDate {
    let count = Days::new(days.unsigned_abs());
    let moved = if days < 0 { day.checked_sub_days(count) } else { day.checked_add_days(count) };
    // The calendar ends in a quarter of a million years.
    moved.unwrap_or(day)
}

/// Midnight, or what comes first where there is none.
pub(crate) fn first_moment(day: NaiveDate, timezone: Tz) -> DateTime<Utc> {
    let midnight = day.and_time(NaiveTime::MIN);
    let mut local = midnight;
    for _ in 0..STEPS_MAX {
        match timezone.from_local_datetime(&local) {
            MappedLocalTime::Single(at) | MappedLocalTime::Ambiguous(at, _) => return at.with_timezone(&Utc),
            MappedLocalTime::None => local += STEP,
        }
    }
    midnight.and_utc()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn starts(limit: RateLimit, timezone: Tz, now: &str) -> Vec<String> {
        let now = DateTime::parse_from_rfc3339(now).expect("a time").with_timezone(&Utc);
        let cap = limit.cap(TemplateKind::Marketing, OverCap::Drop, timezone, now).expect("a cap");
        cap.starts.iter().map(|at| at.format("%FT%RZ").to_string()).collect()
    }

    #[test]
    fn a_day_is_the_calendars_where_the_time_zone_says() {
        let day = RateLimit::PerDay(1);
        // Benin is an hour ahead: at 22:59 it is still Friday there, at 23:00 Saturday.
        let friday = ["2026-11-25T23:00Z", "2026-11-26T23:00Z", "2026-11-27T23:00Z", "2026-11-28T23:00Z"];
        assert_eq!(starts(day, chrono_tz::Africa::PortoNovo, "2026-11-27T22:59:59Z"), friday);
        assert_eq!(starts(day, chrono_tz::Africa::PortoNovo, "2026-11-27T23:00:00Z")[..3], friday[1..]);
        assert_eq!(starts(day, chrono_tz::UTC, "2026-11-27T23:00:00Z")[1], "2026-11-27T00:00Z");
    }

    #[test]
    fn a_week_begins_on_monday_also_across_the_year() {
        let week = RateLimit::PerWeek(3);
        // 2027 begins on a Friday: its first days are of the last ISO week of 2026.
        for now in ["2026-12-28T00:00:00Z", "2026-12-31T12:00:00Z", "2027-01-03T23:59:59Z"] {
            let expected = ["2026-12-21T00:00Z", "2026-12-28T00:00Z", "2027-01-04T00:00Z", "2027-01-11T00:00Z"];
            assert_eq!(starts(week, chrono_tz::UTC, now), expected, "{now}");
        }
        assert_eq!(starts(week, chrono_tz::UTC, "2027-01-04T00:00:00Z")[1], "2027-01-04T00:00Z");
    }

    #[test]
    fn a_day_without_a_midnight_begins_when_its_clocks_do() {
        let day = RateLimit::PerDay(1);
        // Cairo's clocks go from 00:00 to 01:00 on the last Friday of April, and from 24:00 to 23:00 in October.
        let spring = starts(day, chrono_tz::Africa::Cairo, "2026-04-24T12:00:00Z");
        assert_eq!(spring[1..3], ["2026-04-23T22:00Z", "2026-04-24T21:00Z"]);
        // A day of 25 hours is one day.
        let autumn = starts(day, chrono_tz::Europe::Paris, "2026-10-25T12:00:00Z");
        assert_eq!(autumn[1..3], ["2026-10-24T22:00Z", "2026-10-25T23:00Z"]);
        // Samoa had no 30 December 2011.
        let samoa = starts(day, chrono_tz::Pacific::Apia, "2011-12-29T12:00:00Z");
        assert_eq!(samoa[1..4], ["2011-12-29T10:00Z", "2011-12-30T10:00Z", "2011-12-30T10:00Z"]);
    }

    #[test]
    fn no_limit_is_no_cap_and_a_limit_names_its_setting() {
        let cap = |limit: RateLimit, kind| limit.cap(kind, OverCap::Drop, chrono_tz::UTC, Utc::now());
        assert_eq!(cap(RateLimit::Unlimited, TemplateKind::Marketing), None);
        let week = cap(RateLimit::PerWeek(3), TemplateKind::Marketing).expect("a cap");
        assert_eq!(week.words(), "the cap of 3/week for marketing mail (EMAIL_RATE_LIMIT_MARKETING)");
        let day = cap(RateLimit::PerDay(20), TemplateKind::Transactional).expect("a cap");
        assert_eq!(day.words(), "the cap of 20/day for transactional mail (EMAIL_RATE_LIMIT_TRANSACTIONAL)");
        assert_eq!((week.most, day.most), (3, 20));
    }

    proptest! {
        #[test]
        fn windows_follow_each_other_and_hold_now(
            seconds in 0_i64..4_102_444_800,
            zone in prop::sample::select(&chrono_tz::TZ_VARIANTS[..]),
            weekly: bool,
        ) {
            let now = DateTime::from_timestamp(seconds, 0).expect("a time");
            let limit = if weekly { RateLimit::PerWeek(1) } else { RateLimit::PerDay(1) };
            let cap = limit.cap(TemplateKind::Marketing, OverCap::Drop, zone, now).expect("a cap");
            prop_assert!(cap.starts.is_sorted());
            prop_assert!(cap.starts[0] <= now && now < cap.starts[3], "{zone}: {now} is not in {:?}", cap.starts);
        }
    }
}
