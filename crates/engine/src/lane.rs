use request::{Finish, SpeculationStats, Usage};

/// Whether an outlet can take what one step may bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    Free,
    /// The reader is slow: the sequence is not planned and keeps its pages.
    Full,
    /// The reader left: the sequence ends at the next step.
    Gone,
}

/// Where the events of one sequence go. The engine asks for `room` before it plans the sequence and
/// never waits in `deliver`: an outlet that said `Free` takes the step's event and a final one.
pub trait Outlet<Event>: Send {
    fn room(&self) -> Room;
    fn deliver(&mut self, event: Event);
}

/// How a target sequence ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    pub finish: Finish,
    pub usage: Usage,
    pub speculation: SpeculationStats,
}
