//! A line of waiters: first come, first served, and leaving costs the same wherever one stands. The
//! ones at the front may be *marked*; how many is kept in step at the same price. Pure.

use std::collections::VecDeque;

/// A place in the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// Waiters in their order. Who leaves early leaves a gap, which goes when the front reaches it, or when
/// there are more gaps than waiters.
#[derive(Debug)]
pub(crate) struct Line<W> {
    places: VecDeque<Place<W>>,
    /// Tickets rise from the middle, and fall from it for those who come to the front.
    next: u64,
    front: u64,
    len: usize,
    /// Who stands before this ticket is marked.
    mark: u64,
    marked: usize,
}

#[derive(Debug)]
struct Place<W> {
    ticket: u64,
    waiter: Option<W>,
}

impl<W> Default for Line<W> {
    fn default() -> Self {
        Self {
            places: VecDeque::new(),
            next: Self::MIDDLE,
            front: Self::MIDDLE,
            len: 0,
            mark: 0,
            marked: 0,
        }
    }
}

impl<W> Line<W> {
    /// A burst of waiters should not cost memory for ever, nor one who stands for ever at the front.
    const SPARE_PLACES: usize = 64;
    const MIDDLE: u64 = 1 << 63;

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Gives back the room that is not in use.
    pub(crate) fn give_room_back(&mut self) {
        self.places.shrink_to_fit();
    }

    pub(crate) fn push(&mut self, waiter: W) -> Ticket {
        let ticket = self.next;
        self.next += 1;
        self.places.push_back(Place {
            ticket,
            waiter: Some(waiter),
        });
        self.len += 1;
        Ticket(ticket)
    }

    /// Before all others; `newly` is called if it is marked there.
    pub(crate) fn push_front(&mut self, mut waiter: W, newly: impl FnOnce(&mut W)) -> Ticket {
        self.front -= 1;
        if self.front < self.mark {
            self.marked += 1;
            newly(&mut waiter);
        }
        self.places.push_front(Place {
            ticket: self.front,
            waiter: Some(waiter),
        });
        self.len += 1;
        Ticket(self.front)
    }

    /// The waiter at the front leaves.
    pub(crate) fn pop(&mut self) -> Option<W> {
        self.trim();
        let Place { ticket, waiter } = self.places.pop_front()?;
        self.left(ticket);
        self.trim();
        waiter
    }

    /// The waiter with this ticket leaves, wherever it stands; `None` if it has left before.
    pub(crate) fn leave(&mut self, ticket: Ticket) -> Option<W> {
        let at = self.position(ticket.0)?;
        let waiter = self.places.get_mut(at)?.waiter.take()?;
        self.left(ticket.0);
        self.trim();
        Some(waiter)
    }

    /// The first waiter of whom this is true leaves, wherever it stands.
    pub(crate) fn leave_first(&mut self, is_it: impl Fn(&W) -> bool) -> Option<W> {
        let is_it = |place: &&Place<W>| place.waiter.as_ref().is_some_and(&is_it);
        let ticket = self.places.iter().find(is_it)?.ticket;
        self.leave(Ticket(ticket))
    }

    pub(crate) fn get(&self, ticket: Ticket) -> Option<&W> {
        let at = self.position(ticket.0)?;
        self.places.get(at)?.waiter.as_ref()
    }

    pub(crate) fn first(&self) -> Option<&W> {
        self.iter().next()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &W> {
        self.places.iter().filter_map(|place| place.waiter.as_ref())
    }

    /// Marks waiters from the front until `n` are; `newly` is called for each that was not.
    pub(crate) fn mark(&mut self, n: usize, mut newly: impl FnMut(&mut W)) {
        if self.marked >= n || self.marked == self.len {
            return;
        }
        let from = self
            .places
            .partition_point(|place| place.ticket < self.mark);
        for place in self.places.range_mut(from..) {
            self.mark = place.ticket + 1;
            if let Some(waiter) = &mut place.waiter {
                self.marked += 1;
                newly(waiter);
                if self.marked >= n {
                    return;
                }
            }
        }
    }

    /// Takes marks back from the last ones that have them until only `n` are marked; `each` is called for
    /// each of those.
    pub(crate) fn unmark(&mut self, n: usize, mut each: impl FnMut(&mut W)) {
        if self.marked <= n {
            return;
        }
        let to = self
            .places
            .partition_point(|place| place.ticket < self.mark);
        for place in self.places.range_mut(..to).rev() {
            self.mark = place.ticket;
            if let Some(waiter) = &mut place.waiter {
                self.marked -= 1;
                each(waiter);
                if self.marked <= n {
                    return;
                }
            }
        }
    }

    fn position(&self, ticket: u64) -> Option<usize> {
        // Without gaps taken out it stands exactly there.
        let first = self.places.front()?.ticket;
        let direct = usize::try_from(ticket.checked_sub(first)?).ok()?;
        if self.places.get(direct).is_some_and(|p| p.ticket == ticket) {
            return Some(direct);
        }
        self.places.binary_search_by_key(&ticket, |p| p.ticket).ok()
    }

    fn left(&mut self, ticket: u64) {
        self.len -= 1;
        if ticket < self.mark {
            self.marked -= 1;
        }
    }

    fn trim(&mut self) {
        while let Some(Place { waiter: None, .. }) = self.places.front() {
            self.places.pop_front();
        }
        if self.places.len() > 2 * self.len + Self::SPARE_PLACES {
            self.places.retain(|place| place.waiter.is_some());
        }
        if self.places.is_empty() {
            self.places.shrink_to(Self::SPARE_PLACES);
        }
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn order_is_kept_and_every_waiter_leaves_once() {
        let mut line = Line::default();
        let tickets: Vec<_> = (0..5).map(|n| line.push(n)).collect();
        assert_eq!(line.leave(tickets[0]), Some(0));
        assert_eq!(line.leave(tickets[0]), None);
        assert_eq!(line.leave(tickets[2]), Some(2));
        assert_eq!(line.pop(), Some(1));
        assert_eq!(line.leave(tickets[1]), None);
        assert_eq!(line.pop(), Some(3));
        assert_eq!(line.get(tickets[4]), Some(&4));
        assert_eq!((line.len(), line.pop(), line.pop()), (1, Some(4), None));
        let tickets: Vec<_> = (0..5).map(|n| line.push(n)).collect();
        line.leave(tickets[0]);
        assert_eq!(line.leave_first(|n| n % 2 == 0), Some(2));
        assert_eq!(line.leave_first(|n| *n > 7), None);
        assert_eq!(
            (line.pop(), line.pop(), line.pop()),
            (Some(1), Some(3), Some(4))
        );
        let again = line.push(9);
        assert_eq!(line.leave(again), Some(9));
    }

    #[test]
    fn one_who_stands_for_ever_at_the_front_does_not_keep_the_gaps_behind_it() {
        let mut line = Line::default();
        let first = line.push(0);
        for n in 1..10_000 {
            let ticket = line.push(n);
            assert_eq!(line.leave(ticket), Some(n));
            assert!(line.places.len() <= 2 + Line::<i32>::SPARE_PLACES);
        }
        let last = line.push(10_000);
        assert_eq!((line.get(first), line.get(last)), (Some(&0), Some(&10_000)));
        assert_eq!(
            (line.pop(), line.pop(), line.pop()),
            (Some(0), Some(10_000), None)
        );
    }

    proptest! {
        #[test]
        fn line_behaves_as_a_list_from_which_anyone_may_leave(ops in prop::collection::vec(0u8..=255, 0..400)) {
            let mut line = Line::default();
            let mut model: Vec<(Ticket, usize)> = Vec::new();
            let mut tickets = Vec::new();
            let mut marks = std::collections::HashSet::new();
            for (n, op) in ops.into_iter().enumerate() {
                match op % 4 {
                    3 => {
                        let marked = usize::from(op) % 7;
                        if op & 64 == 0 {
                            line.mark(marked, |n| { marks.insert(*n); });
                        } else {
                            line.unmark(marked, |n| { marks.remove(n); });
                        }
                        // Nobody is marked twice or out of turn.
                        let front = model.iter().take_while(|(_, n)| marks.contains(n)).count();
                        let all = model.iter().filter(|(_, n)| marks.contains(n)).count();
                        prop_assert_eq!((front, all), (line.marked, line.marked));
                        if op & 64 == 0 {
                            prop_assert!(line.marked >= marked.min(line.len()));
                        } else {
                            prop_assert!(line.marked <= marked);
                        }
                    }
                    0 if op & 128 == 0 => {
                        let ticket = line.push(n);
                        model.push((ticket, n));
                        tickets.push(ticket);
                    }
                    0 => {
                        let ticket = line.push_front(n, |n| { marks.insert(*n); });
                        model.insert(0, (ticket, n));
                        tickets.push(ticket);
                    }
                    1 => {
                        let expected = (!model.is_empty()).then(|| model.remove(0).1);
                        prop_assert_eq!(line.pop(), expected);
                    }
                    _ if !tickets.is_empty() => {
                        let ticket = tickets[op as usize % tickets.len()];
                        let at = model.iter().position(|(t, _)| *t == ticket);
                        prop_assert_eq!(line.leave(ticket), at.map(|at| model.remove(at).1));
                    }
                    _ => {}
                }
                prop_assert_eq!(line.len(), model.len());
                prop_assert_eq!(line.is_empty(), model.is_empty());
            }
        }
    }
}
