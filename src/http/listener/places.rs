//! How many connections there may be, of one address and in all, and who must go when another one comes.
//!
//! Whoever makes us wait goes first: of the address that has most connections, the one that we have waited for longest. So a
//! thousand clients that send half a head push each other out, and whoever sends a request at once is served.
//!
//! Invariant: a connection that waits for us is never ended to make room.

use std::{
    cmp::Reverse,
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::line::Watch;

/// Why there is no place: all of these are at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// Those that one address may have.
    OfOne(usize),
    /// Those that there are.
    InAll(usize),
}

/// All places of a listener.
#[derive(Debug)]
pub(super) struct Places {
    in_all: usize,
    of_one: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    lines: HashMap<u64, (IpAddr, Arc<Watch>)>,
}

impl Places {
    pub(super) fn new(in_all: usize, of_one: usize) -> Arc<Self> {
        Arc::new(Self { in_all, of_one, taken: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection from there. `is_proxy`: it stands for many clients, so that only the limit in all holds.
    ///
    /// # Errors
    /// All that might make room are at work.
    pub(super) fn enter(self: &Arc<Self>, from: IpAddr, is_proxy: bool) -> Result<Place, Full> {
        let mut taken = self.lock();
        let of_one = taken.lines.values().filter(|(address, _)| *address == from).count();
        if !is_proxy && of_one >= self.of_one {
            taken.make_room(Some(from)).ok_or(Full::OfOne(self.of_one))?;
        }
        if taken.lines.len() >= self.in_all {
            taken.make_room(None).ok_or(Full::InAll(self.in_all))?;
        }
        let id = taken.next;
        taken.next += 1;
        let watch = Arc::new(Watch::new());
        taken.lines.insert(id, (from, Arc::clone(&watch)));
        Ok(Place { id, watch, places: Arc::clone(self) })
    }
}

impl Taken {
    fn make_room(&mut self, of: Option<IpAddr>) -> Option<()> {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for (address, _) in self.lines.values() {
            *counts.entry(*address).or_default() += 1;
        }
        let waiting = self.lines.iter().filter(|(_, (address, _))| of.is_none_or(|of| of == *address));
        let waiting = waiting.filter_map(|(id, (address, watch))| Some((*id, *address, watch.waits_since()?)));
        let (id, ..) = waiting.max_by_key(|(_, address, since)| (counts[address], Reverse(*since)))?;
        if let Some((_, watch)) = self.lines.remove(&id) {
            watch.crowded_out.cancel();
        }
        Some(())
    }
}

/// A connection's place, for as long as it lives.
#[derive(Debug)]
pub(super) struct Place {
    id: u64,
    pub(super) watch: Arc<Watch>,
    places: Arc<Places>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().lines.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn is_out(place: &Place) -> bool {
        place.watch.crowded_out.is_cancelled()
    }

    #[test]
    fn whoever_has_most_makes_room_and_of_those_the_one_waited_for_longest() {
        let places = Places::new(4, 3);
        let mut of_a = Vec::new();
        for _ in 0..3 {
            of_a.push(places.enter(A, false).expect("a place"));
        }
        let of_b = places.enter(B, false).expect("a place");
        let another = places.enter(B, false).expect("room is made");
        assert_eq!(of_a.iter().map(is_out).collect::<Vec<_>>(), [true, false, false]);
        assert!(!is_out(&of_b) && !is_out(&another));
        // Its own limit is met within an address.
        drop(another);
        let more: Vec<_> = (0..2).map(|_| places.enter(A, false).expect("a place")).collect();
        assert_eq!(of_a.iter().chain(&more).map(is_out).collect::<Vec<_>>(), [true, true, false, false, false]);
        assert!(!is_out(&of_b));
    }

    #[test]
    fn whoever_waits_for_us_stays() {
        let places = Places::new(2, 2);
        let one = places.enter(A, false).expect("a place");
        let other = places.enter(B, false).expect("a place");
        one.watch.work();
        other.watch.work();
        assert_eq!(places.enter(A, false).err(), Some(Full::InAll(2)));
        let alone = Places::new(2, 1);
        let one_of_a = alone.enter(A, false).expect("a place");
        one_of_a.watch.work();
        assert_eq!(alone.enter(A, false).err(), Some(Full::OfOne(1)));
        drop(one);
        assert!(places.enter(A, false).is_ok());
        assert!(!is_out(&other));
    }

    #[test]
    fn a_proxy_has_all_places_but_no_more() {
        let places = Places::new(3, 1);
        let all: Vec<_> = (0..3).map(|_| places.enter(A, true).expect("a place")).collect();
        assert!(all.iter().all(|place| !is_out(place)));
        let _one_more = places.enter(A, true).expect("room is made");
        assert_eq!(all.iter().filter(|place| is_out(place)).count(), 1);
        assert_eq!(places.lock().lines.len(), 3);
    }
}
