//! The stack machine behind [`Pickle`](super::Pickle): opcodes of protocols 2 to 5.

use std::collections::HashMap;

use super::{Id, Node, PickleFault};

/// Most values, and most entries on any of the machine's stacks.
const MAX_ENTRIES: usize = 1 << 20;

/// Runs the program; gives all values, the final one, and the length of the program.
pub(super) fn run(input: &[u8]) -> Result<(Vec<Node<'_>>, Id, usize), PickleFault> {
    let mut machine = Machine {
        input,
        pos: 0,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    let root = machine.run()?;
    Ok((machine.nodes, root, machine.pos))
}

struct Machine<'a> {
    input: &'a [u8],
    pos: usize,
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    /// heights of the stack
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Id, PickleFault> {
        loop {
            let offset = self.pos;
            let opcode = self.u8()?;
            match opcode {
                b'.' => return self.pop(),
                0x80 => drop(self.take(1)?), // PROTO
                0x95 => drop(self.take(8)?), // FRAME
                b'(' => {
                    limit(self.marks.len())?;
                    self.marks.push(self.stack.len());
                }
                b'0' => match self.marks.last() {
                    Some(&mark) if mark == self.stack.len() => drop(self.marks.pop()),
                    _ => drop(self.pop()?),
                },
                b'1' => drop(self.pop_mark()?),
                b'2' => {
                    let top = self.top()?;
                    self.push_id(top)?;
                }
                b'N' => self.push(Node::None)?,
                0x88 => self.push(Node::Bool(true))?,
                0x89 => self.push(Node::Bool(false))?,
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push(Node::Int(value.into()))?;
                }
                b'K' => {
                    let value = self.u8()?;
                    self.push(Node::Int(value.into()))?;
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.push(Node::Int(value.into()))?;
                }
                0x8a => {
                    let len = self.u8()?.into();
                    self.long(len)?;
                }
                0x8b => {
                    let len = self.len32()?;
                    self.long(len)?;
                }
                b'G' => {
                    let value = f64::from_be_bytes(self.array()?);
                    self.push(Node::Float(value))?;
                }
                b'X' => {
                    let len = self.len32()?;
                    self.text(len)?;
                }
                0x8c => {
                    let len = self.u8()?.into();
                    self.text(len)?;
                }
                0x8d => {
                    let len = self.len64()?;
                    self.text(len)?;
                }
                b'U' | b'C' => {
                    let len = self.u8()?.into();
                    self.bytes(len)?;
                }
                b'T' | b'B' => {
                    let len = self.len32()?;
                    self.bytes(len)?;
                }
                0x8e | 0x96 => {
                    let len = self.len64()?;
                    self.bytes(len)?;
                }
                b')' => self.push(Node::Tuple(Vec::new()))?,
                0x85..=0x87 => {
                    let at = self.stack.len().checked_sub(usize::from(opcode - 0x84));
                    let at = at
                        .filter(|&at| at >= self.floor())
                        .ok_or(PickleFault::Stack { offset })?;
                    let items = self.stack.split_off(at);
                    self.push(Node::Tuple(items))?;
                }
                b't' => {
                    let items = self.pop_mark()?;
                    self.push(Node::Tuple(items))?;
                }
                b']' | 0x8f => self.push(Node::List(Vec::new()))?,
                b'l' | 0x91 => {
                    let items = self.pop_mark()?;
                    self.push(Node::List(items))?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.extend(vec![item])?;
                }
                b'e' | 0x90 => {
                    let items = self.pop_mark()?;
                    self.extend(items)?;
                }
                b'}' => self.push(Node::Dict(Vec::new()))?,
                b'd' => {
                    let items = self.pop_mark()?;
                    self.push(Node::Dict(Vec::new()))?;
                    self.set(items)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.set(vec![key, value])?;
                }
                b'u' => {
                    let items = self.pop_mark()?;
                    self.set(items)?;
                }
                b'c' => {
                    let module = self.line()?;
                    let name = self.line()?;
                    self.push(Node::Global { module, name })?;
                }
                0x93 => {
                    let name = self.pop()?;
                    let module = self.pop()?;
                    let (Node::Str(module), Node::Str(name)) =
                        (&self.nodes[module.0 as usize], &self.nodes[name.0 as usize])
                    else {
                        return Err(PickleFault::Text { offset });
                    };
                    let node = Node::Global { module, name };
                    self.push(node)?;
                }
                b'R' | 0x81 => {
                    let args = self.pop()?;
                    let func = self.pop()?;
                    self.push(Node::Call {
                        func,
                        args,
                        entries: Vec::new(),
                    })?;
                }
                0x92 => {
                    // NEWOBJ_EX: keyword arguments are of no interest
                    self.pop()?;
                    let args = self.pop()?;
                    let func = self.pop()?;
                    self.push(Node::Call {
                        func,
                        args,
                        entries: Vec::new(),
                    })?;
                }
                // BUILD: state set on an object (backward hooks, `_metadata`) is of no interest
                b'b' => {
                    self.pop()?;
                    self.top()?;
                }
                b'Q' => {
                    let id = self.pop()?;
                    self.push(Node::Persistent(id))?;
                }
                b'q' => {
                    let index = self.u8()?.into();
                    self.store(index)?;
                }
                b'r' => {
                    let index = u32::from_le_bytes(self.array()?);
                    self.store(index)?;
                }
                0x94 => {
                    let index = self.memo.len() as u32;
                    self.store(index)?;
                }
                b'h' => {
                    let index = self.u8()?.into();
                    self.load(index, offset)?;
                }
                b'j' => {
                    let index = u32::from_le_bytes(self.array()?);
                    self.load(index, offset)?;
                }
                opcode => return Err(PickleFault::Opcode { opcode, offset }),
            }
        }
    }
    fn fault_here(&self) -> PickleFault {
        PickleFault::Stack {
            offset: self.pos.saturating_sub(1),
        }
    }

    /// Lowest stack position that belongs to the innermost mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn push(&mut self, node: Node<'a>) -> Result<(), PickleFault> {
        limit(self.nodes.len())?;
        let id = Id(self.nodes.len() as u32);
        self.nodes.push(node);
        self.push_id(id)
    }

    fn push_id(&mut self, id: Id) -> Result<(), PickleFault> {
        limit(self.stack.len())?;
        self.stack.push(id);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, PickleFault> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn top(&self) -> Result<Id, PickleFault> {
        let above_mark = self.stack.len() > self.floor();
        self.stack
            .last()
            .copied()
            .filter(|_| above_mark)
            .ok_or_else(|| self.fault_here())
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, PickleFault> {
        let mark = self.marks.pop().ok_or_else(|| self.fault_here())?;
        Ok(self.stack.split_off(mark))
    }

    fn store(&mut self, index: u32) -> Result<(), PickleFault> {
        limit(self.memo.len())?;
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn load(&mut self, index: u32, offset: usize) -> Result<(), PickleFault> {
        let id = *self.memo.get(&index).ok_or(PickleFault::Memo { index, offset })?;
        self.push_id(id)
    }

    /// Appends to the list on top. Other objects swallow their items: list-like classes are opaque.
    fn extend(&mut self, items: Vec<Id>) -> Result<(), PickleFault> {
        let offset = self.pos - 1;
        let top = self.top()?;
        match self.node_mut(top) {
            Node::List(list) => list.extend(items),
            Node::Call { .. } => {}
            _ => return Err(PickleFault::NotACollection { offset }),
        }
        Ok(())
    }

    /// Sets alternating keys and values on the dictionary on top.
    fn set(&mut self, items: Vec<Id>) -> Result<(), PickleFault> {
        let offset = self.pos - 1;
        let top = self.top()?;
        let (pairs, []) = items.as_chunks::<2>() else {
            return Err(PickleFault::Stack { offset });
        };
        match self.node_mut(top) {
            Node::Dict(entries) | Node::Call { entries, .. } => {
                entries.extend(pairs.iter().map(|&[k, v]| (k, v)))
            }
            _ => return Err(PickleFault::NotACollection { offset }),
        }
        Ok(())
    }

    fn node_mut(&mut self, id: Id) -> &mut Node<'a> {
        &mut self.nodes[id.0 as usize]
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], PickleFault> {
        let rest = &self.input[self.pos..];
        let taken = rest
            .get(..len)
            .ok_or(PickleFault::Truncated { offset: self.pos })?;
        self.pos += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleFault> {
        let rest = &self.input[self.pos..];
        let array = *rest
            .first_chunk()
            .ok_or(PickleFault::Truncated { offset: self.pos })?;
        self.pos += N;
        Ok(array)
    }

    fn u8(&mut self) -> Result<u8, PickleFault> {
        self.array::<1>().map(|[b]| b)
    }

    fn len32(&mut self) -> Result<usize, PickleFault> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    fn len64(&mut self) -> Result<usize, PickleFault> {
        // a length beyond the address space is beyond the input too
        Ok(usize::try_from(u64::from_le_bytes(self.array()?)).unwrap_or(usize::MAX))
    }

    fn line(&mut self) -> Result<&'a str, PickleFault> {
        let offset = self.pos;
        let rest = &self.input[self.pos..];
        let len = rest
            .iter()
            .position(|&b| b == b'\n')
            .ok_or(PickleFault::Truncated { offset })?;
        self.pos += len + 1;
        std::str::from_utf8(&rest[..len]).map_err(|_| PickleFault::Text { offset })
    }

    fn long(&mut self, len: usize) -> Result<(), PickleFault> {
        let bytes = self.take(len)?;
        // the last byte carries the sign; bytes that only repeat it say nothing more
        let sign = if bytes.last().is_some_and(|b| b & 0x80 != 0) {
            0xff
        } else {
            0
        };
        let (low, high) = bytes.split_at(len.min(8));
        let mut wide = [sign; 8];
        wide[..low.len()].copy_from_slice(low);
        let fits = high.iter().all(|&b| b == sign) && (wide[7] ^ sign) & 0x80 == 0;
        self.push(if fits {
            Node::Int(i64::from_le_bytes(wide))
        } else {
            Node::BigInt(bytes)
        })
    }

    fn text(&mut self, len: usize) -> Result<(), PickleFault> {
        let bytes = self.take(len)?;
        let offset = self.pos - len;
        let text = std::str::from_utf8(bytes).map_err(|_| PickleFault::Text { offset })?;
        self.push(Node::Str(text))
    }

    fn bytes(&mut self, len: usize) -> Result<(), PickleFault> {
        let bytes = self.take(len)?;
        self.push(Node::Bytes(bytes))
    }
}

fn limit(len: usize) -> Result<(), PickleFault> {
    if len < MAX_ENTRIES {
        Ok(())
    } else {
        Err(PickleFault::TooLarge)
    }
}
