//! A line of waiters: first come, first served, and leaving costs the same wherever one stands.
//! Pure.

use std::collections::VecDeque;

/// A place in the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// Waiters in their order. Who leaves early leaves a gap, which goes when the front reaches it.
#[derive(Debug)]
pub(crate) struct Line<W> {
    places: VecDeque<Option<W>>,
    first: u64,
    len: usize,
}

impl<W> Default for Line<W> {
    fn default() -> Self {
        Self {
            places: VecDeque::new(),
            first: 0,
            len: 0,
        }
    }
}

impl<W> Line<W> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn push(&mut self, waiter: W) -> Ticket {
        self.places.push_back(Some(waiter));
        self.len += 1;
        Ticket(self.first + self.places.len() as u64 - 1)
    }

    /// The waiter at the front leaves.
    pub(crate) fn pop(&mut self) -> Option<W> {
        self.trim();
        let waiter = self.places.pop_front()??;
        self.first += 1;
        self.len -= 1;
        self.trim();
        Some(waiter)
    }

    /// The waiter with this ticket leaves, wherever it stands; `None` if it has left before.
    pub(crate) fn leave(&mut self, ticket: Ticket) -> Option<W> {
        let waiter = self.get_mut(ticket)?.take()?;
        self.len -= 1;
        self.trim();
        Some(waiter)
    }

    /// The first waiter of whom this is true leaves, wherever it stands.
    pub(crate) fn leave_first(&mut self, is_it: impl Fn(&W) -> bool) -> Option<W> {
        let at = self
            .places
            .iter()
            .position(|place| place.as_ref().is_some_and(&is_it))?;
        self.leave(Ticket(self.first + at as u64))
    }

    pub(crate) fn get(&self, ticket: Ticket) -> Option<&W> {
        let index = usize::try_from(ticket.0.checked_sub(self.first)?).ok()?;
        self.places.get(index)?.as_ref()
    }

    fn get_mut(&mut self, ticket: Ticket) -> Option<&mut Option<W>> {
        let index = usize::try_from(ticket.0.checked_sub(self.first)?).ok()?;
        self.places.get_mut(index)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &W> {
        self.places.iter().flatten()
    }

    /// The waiters from the front.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut W> {
        self.places.iter_mut().flatten()
    }

    fn trim(&mut self) {
        while let Some(None) = self.places.front() {
            self.places.pop_front();
            self.first += 1;
        }
        if self.places.is_empty() {
            // A burst of waiters should not cost memory for ever.
            self.places.shrink_to(64);
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

    proptest! {
        #[test]
        fn line_behaves_as_a_list_from_which_anyone_may_leave(ops in prop::collection::vec(0u8..=255, 0..200)) {
            let mut line = Line::default();
            let mut model: Vec<(Ticket, usize)> = Vec::new();
            let mut tickets = Vec::new();
            for (n, op) in ops.into_iter().enumerate() {
                match op % 3 {
                    0 => {
                        let ticket = line.push(n);
                        model.push((ticket, n));
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
