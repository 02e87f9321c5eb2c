/// Where a character stands in JSON text; checks brackets only, not grammar.
#[derive(Clone, Debug, Default)]
pub(super) struct Nesting {
    /// Closing brackets that are due.
    due: Vec<char>,
    pub(super) in_string: bool,
    escaped: bool,
}

/// What a character did to the nesting.
#[derive(PartialEq)]
pub(super) enum Step {
    Inside,
    /// The value that began is complete.
    Closed,
    /// A bracket that does not fit.
    Broken,
}

impl Nesting {
    /// Behind the brace that opens an object.
    pub(super) fn inside_object() -> Self {
        Self { due: vec!['}'], ..Self::default() }
    }

    pub(super) fn is_outside(&self) -> bool {
        self.due.is_empty() && !self.in_string
    }

    pub(super) fn read(&mut self, c: char) -> Step {
        if self.in_string {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => self.in_string = false,
                _ => {}
            }
        } else {
            match c {
                '"' => self.in_string = true,
                '{' => self.due.push('}'),
                '[' => self.due.push(']'),
                '}' | ']' if self.due.pop() != Some(c) => return Step::Broken,
                '}' | ']' if self.due.is_empty() => return Step::Closed,
                _ => {}
            }
        }
        Step::Inside
    }
}
