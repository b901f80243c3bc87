//! How fast mail may go to a relay that says "not so fast". Pure: the time is passed in.
//!
//! A relay has no limit until it throttles. Then the pace falls to half of what it had taken lately, grows by steps
//! while it takes mails, and the limit is dropped once it has kept quiet about it for a while. A relay that goes on
//! throttling all it gets is asked more and more rarely, but never given up; one that throttles a few among many, whatever
//! the pace, is slowed down by as much as it throttles, and not to a crawl.
//!
//! Invariant: one wave of throttling answers slows it down once: an answer to a mail that was let go before the last
//! slowing down tells nothing that is not known.
//! Invariant: the fast lane does not stand in line with the others: it takes what is due in advance, and they make up
//! for it, so that the whole still keeps the pace.

use std::time::Duration;

use tokio::time::Instant;

use crate::email::Lane;

/// What "lately" means.
const LATELY: Duration = Duration::from_secs(2);
/// What the pace loses when the relay throttles all that it is given.
const CUT: f64 = 0.5;
/// What it loses at least, so that a relay with a limit is not brushed against all the time.
const CUT_MIN: f64 = 0.15;
/// While it takes some, the pace is cut no more often than this: before that nobody knows what the last cut has changed.
const CUT_EVERY: Duration = LATELY;
/// Mails a second: the pace never begins lower, and below it it doubles with each mail that is taken.
const BEGIN_MIN: f64 = 1.0;
/// Mails a second: the pace never falls lower.
const PACE_MIN: f64 = 1.0 / 30.0;
/// Seconds in which the pace grows by as much as the relay took before it throttled.
const GROWTH_SECONDS: f64 = 30.0;
/// Mails a second, each second: the least growth.
const STEP_MIN: f64 = 0.1;
/// Without a throttling answer for so long, the limit is dropped.
const QUIET: Duration = Duration::from_secs(120);
/// Seconds of the pace that may be saved up and go at once; at least one mail.
const BURST_SECONDS: f64 = 0.1;
/// How many mails the fast lane may go ahead of the pace.
const FAST_ADVANCE: f64 = 4.0;

/// The pace of one relay.
#[derive(Debug, Default)]
pub(super) struct Pace {
    taken: Recent,
    /// Those that it throttled among them.
    answered: Recent,
    limit: Option<Limit>,
}

#[derive(Debug)]
struct Limit {
    per_second: f64,
    /// Growth, in mails a second, each second.
    step: f64,
    /// Mails that may go now; below zero when the fast lane went ahead.
    due: f64,
    counted_at: Instant,
    cut_at: Instant,
    /// Mails let go since the last cut that the relay took, and that it throttled.
    answers: (u32, u32),
}

/// Mails counted lately: a whole span of time that is over, and one that is not.
#[derive(Debug, Default)]
struct Recent {
    began_at: Option<Instant>,
    now: f64,
    before: f64,
}

impl Pace {
    /// When a mail of this lane may go; nothing: at once.
    pub(super) fn due_at(&self, lane: Lane, now: Instant) -> Option<Instant> {
        let limit = self.limit(now)?;
        let missing = needed(lane) - limit.due_at(now);
        // A little later rather than a little too early, or whoever waits would wake up in vain.
        (missing > 0.0).then(|| now + Duration::from_secs_f64(missing / limit.per_second) + Duration::from_millis(1))
    }

    /// Lets a mail of this lane go, if it is due.
    pub(super) fn take(&mut self, lane: Lane, now: Instant) -> bool {
        if self.due_at(lane, now).is_some() {
            return false;
        }
        if self.limit(now).is_none() {
            self.limit = None;
        }
        if let Some(limit) = &mut self.limit {
            limit.count(now);
            limit.due -= 1.0;
        }
        true
    }

    /// A mail that had been let go did not go after all.
    pub(super) fn give_back(&mut self) {
        if let Some(limit) = &mut self.limit {
            limit.due = (limit.due + 1.0).min(limit.burst());
        }
    }

    /// The relay took a mail that had been let go at `let_go_at`.
    pub(super) fn taken(&mut self, let_go_at: Instant, now: Instant) {
        self.taken.add(now);
        self.answered.add(now);
        if let Some(limit) = &mut self.limit
            && let_go_at > limit.cut_at
        {
            limit.count(now);
            limit.answers.0 += 1;
            if limit.per_second < BEGIN_MIN {
                limit.per_second = (limit.per_second * 2.0).min(BEGIN_MIN);
            } else {
                limit.per_second += limit.step / limit.per_second;
            }
        }
    }

    /// The relay throttled a mail that had been let go at `let_go_at`. True if that slows it down.
    pub(super) fn throttled(&mut self, let_go_at: Instant, now: Instant) -> bool {
        self.answered.add(now);
        let lately = self.taken.per_second(now);
        let went = self.answered.per_second(now);
        let mut step = (lately / GROWTH_SECONDS).max(STEP_MIN);
        if self.limit(now).is_none() {
            self.limit = None;
        }
        let (per_second, due) = match &mut self.limit {
            Some(limit) if let_go_at <= limit.cut_at => return false,
            Some(limit) => {
                limit.answers.1 += 1;
                let (taken, throttled) = limit.answers;
                if taken > 0 && now.saturating_duration_since(limit.cut_at) < CUT_EVERY {
                    return false;
                }
                let share = f64::from(throttled) / f64::from(taken + throttled);
                // No more than what really went: a limit that nothing had reached says nothing.
                let kept = limit.per_second.min(went.max(BEGIN_MIN));
                // What it took before it ever throttled says how fast to try again.
                step = step.max(limit.step);
                ((kept * (1.0 - (CUT * share).max(CUT_MIN))).max(PACE_MIN), limit.due_at(now).min(0.0))
            }
            None => ((lately * CUT).max(BEGIN_MIN), 0.0),
        };
        self.limit = Some(Limit { per_second, step, due, counted_at: now, cut_at: now, answers: (0, 0) });
        true
    }

    /// Mails a second; nothing: as fast as it goes.
    pub(super) fn per_second(&self, now: Instant) -> Option<f64> {
        self.limit(now).map(|limit| limit.per_second)
    }

    /// The limit, unless it is to be dropped.
    fn limit(&self, now: Instant) -> Option<&Limit> {
        self.limit.as_ref().filter(|limit| now.saturating_duration_since(limit.cut_at) < QUIET)
    }
}

/// What must be due for a mail of this lane to go.
const fn needed(lane: Lane) -> f64 {
    match lane {
        Lane::Fast => 1.0 - FAST_ADVANCE,
        Lane::Standard | Lane::Bulk => 1.0,
    }
}

impl Limit {
    fn burst(&self) -> f64 {
        (self.per_second * BURST_SECONDS).max(1.0)
    }

    fn due_at(&self, now: Instant) -> f64 {
        let since = now.saturating_duration_since(self.counted_at).as_secs_f64();
        (self.due + since * self.per_second).min(self.burst())
    }

    fn count(&mut self, now: Instant) {
        self.due = self.due_at(now);
        self.counted_at = self.counted_at.max(now);
    }
}

impl Recent {
    fn add(&mut self, now: Instant) {
        let began_at = *self.began_at.get_or_insert(now);
        let since = now.saturating_duration_since(began_at);
        if since >= LATELY {
            // What was counted before is only of use while it borders on now.
            self.before = if since < LATELY * 2 { self.now } else { 0.0 };
            self.now = 0.0;
            self.began_at = Some(if since < LATELY * 2 { began_at + LATELY } else { now });
        }
        self.now += 1.0;
    }

    fn per_second(&self, now: Instant) -> f64 {
        let Some(began_at) = self.began_at else { return 0.0 };
        let spans = now.saturating_duration_since(began_at).as_secs_f64() / LATELY.as_secs_f64();
        let counted = match spans {
            ..1.0 => self.now + self.before * (1.0 - spans),
            ..2.0 => self.now * (2.0 - spans),
            _ => 0.0,
        };
        counted / LATELY.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A relay that takes `limit` mails in each whole second and throttles the rest.
    struct Limited {
        per_second: u32,
        second: u64,
        taken: u32,
    }

    impl Limited {
        fn takes(&mut self, at: Duration) -> bool {
            if at.as_secs() != self.second {
                (self.second, self.taken) = (at.as_secs(), 0);
            }
            self.taken += 1;
            self.taken <= self.per_second
        }
    }

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// Takes mails at this pace for so long.
    fn carry(pace: &mut Pace, from: Instant, per_second: u64, seconds: u64) -> Instant {
        for n in 0..per_second * seconds {
            let at = from + ms(n * 1000 / per_second);
            assert!(pace.take(Lane::Standard, at));
            pace.taken(at, at);
        }
        from + Duration::from_secs(seconds)
    }

    fn shown(pace: &Pace, now: Instant) -> f64 {
        pace.per_second(now).expect("there is a limit")
    }

    #[test]
    fn nothing_limits_a_relay_that_never_throttled() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        for _ in 0..10_000 {
            assert!(pace.take(Lane::Bulk, now));
            pace.taken(now, now);
        }
        assert_eq!((pace.due_at(Lane::Bulk, now), pace.per_second(now)), (None, None));
    }

    #[test]
    fn it_falls_to_half_of_what_went_and_one_wave_counts_once() {
        let mut pace = Pace::default();
        let now = carry(&mut pace, Instant::now(), 40, 4);
        // Twenty were on their way when it began.
        let let_go: Vec<_> = (1..=20).map(|n| now - ms(n)).collect();
        let slowed = let_go.iter().filter(|let_go| pace.throttled(**let_go, now + ms(5))).count();
        assert_eq!(slowed, 1);
        let half = shown(&pace, now + ms(5));
        assert!((19.0..=21.0).contains(&half), "{half}");
        // One that was let go at the new pace and is throttled all the same tells something new.
        assert!(pace.throttled(now + ms(6), now + ms(10)));
        let quarter = shown(&pace, now + ms(10));
        assert!((9.5..=10.5).contains(&quarter), "{quarter}");
    }

    #[test]
    fn mails_that_were_already_on_their_way_do_not_make_it_faster() {
        let mut pace = Pace::default();
        let now = carry(&mut pace, Instant::now(), 40, 4);
        assert!(pace.throttled(now, now));
        let before = shown(&pace, now);
        pace.taken(now - ms(1), now + ms(10));
        assert!(shown(&pace, now + ms(10)) <= before);
        pace.taken(now + ms(1), now + ms(20));
        assert!(shown(&pace, now + ms(20)) > before);
    }

    #[test]
    fn a_relay_that_goes_on_throttling_is_asked_more_and_more_rarely_but_never_given_up() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        assert!(pace.take(Lane::Standard, now));
        pace.throttled(now, now);
        assert!((shown(&pace, now) - BEGIN_MIN).abs() < 1e-9, "the first time it is a second");
        let mut waited = Duration::ZERO;
        for _ in 0..20 {
            let due_at = pace.due_at(Lane::Standard, now).expect("not at once");
            waited = due_at - now;
            now = due_at;
            assert!(pace.take(Lane::Standard, now), "what is due may go");
            assert!(pace.throttled(now, now + ms(1)));
            now += ms(1);
        }
        assert!(ms(29_000) < waited && waited < ms(31_000), "{waited:?}");
        // It takes one mail again: not half a minute for each from then on.
        now = pace.due_at(Lane::Standard, now).expect("not at once");
        for _ in 0..6 {
            assert!(pace.take(Lane::Standard, now));
            pace.taken(now, now);
            now = pace.due_at(Lane::Standard, now).unwrap_or(now);
        }
        assert!(shown(&pace, now) >= BEGIN_MIN);
    }

    #[test]
    fn the_limit_is_dropped_after_a_quiet_while() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert!(pace.throttled(now, now));
        assert!(pace.per_second(now + QUIET - ms(1)).is_some());
        assert_eq!((pace.per_second(now + QUIET), pace.due_at(Lane::Bulk, now + QUIET)), (None, None));
        for _ in 0..1000 {
            assert!(pace.take(Lane::Bulk, now + QUIET));
        }
        // The next time it begins afresh.
        assert!(pace.throttled(now + QUIET, now + QUIET + ms(1)));
        assert!((shown(&pace, now + QUIET + ms(1)) - BEGIN_MIN).abs() < 1e-9);
    }

    #[test]
    fn the_fast_lane_goes_ahead_and_the_others_make_up_for_it() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        pace.throttled(now, now);
        assert!(!pace.take(Lane::Standard, now));
        for _ in 0..4 {
            assert!(pace.take(Lane::Fast, now));
        }
        // But not without end.
        assert!(!pace.take(Lane::Fast, now));
        assert!(pace.take(Lane::Fast, now + ms(1001)));
        assert!(!pace.take(Lane::Standard, now + ms(5000)));
        assert!(pace.take(Lane::Standard, now + ms(6100)));
    }

    #[test]
    fn what_did_not_go_may_go_again() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        pace.throttled(now, now);
        let due_at = pace.due_at(Lane::Bulk, now).expect("not at once");
        assert!(pace.take(Lane::Bulk, due_at) && !pace.take(Lane::Bulk, due_at));
        pace.give_back();
        assert!(pace.take(Lane::Bulk, due_at));
        // Giving back saves nothing up.
        for _ in 0..10 {
            pace.give_back();
        }
        assert!(pace.take(Lane::Bulk, due_at) && !pace.take(Lane::Bulk, due_at));
    }

    #[test]
    fn a_relay_that_throttles_a_share_of_all_it_gets_is_slowed_down_and_not_to_a_crawl() {
        for (every, at_least) in [(10, 15.0), (2, 4.0)] {
            let mut pace = Pace::default();
            let begin = carry(&mut pace, Instant::now(), 100, 4);
            let (mut at, mut sent, mut taken) = (Duration::ZERO, 0_u32, 0_u32);
            while at < Duration::from_secs(300) {
                at += ms(5);
                let now = begin + at;
                if pace.take(Lane::Standard, now) {
                    sent += 1;
                    if sent.is_multiple_of(every) {
                        pace.throttled(now, now);
                    } else {
                        pace.taken(now, now);
                        taken += 1;
                    }
                }
            }
            let per_second = f64::from(taken) / 300.0;
            assert!(per_second >= at_least, "one in {every} throttled: {per_second} of 100 a second");
        }
    }

    #[test]
    fn a_relay_with_a_limit_gets_most_of_what_it_would_take_and_few_mails_in_vain() {
        let (mut pace, begin) = (Pace::default(), Instant::now());
        let mut relay = Limited { per_second: 14, second: 0, taken: 0 };
        let (mut taken, mut throttled, mut at) = (0_u32, 0_u32, Duration::ZERO);
        while at < Duration::from_secs(100) {
            at += ms(5);
            let now = begin + at;
            if pace.take(Lane::Standard, now) {
                if relay.takes(at) {
                    pace.taken(now, now);
                    taken += 1;
                } else {
                    pace.throttled(now, now);
                    throttled += 1;
                }
            }
        }
        assert!(taken > 14 * 100 / 2, "{taken} taken, {throttled} throttled");
        assert!(throttled < taken / 20, "{taken} taken, {throttled} throttled");
    }
}
