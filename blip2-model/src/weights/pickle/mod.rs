//! A pickle reader that builds data and runs nothing.
//!
//! It executes the stack operations of pickle protocols 2 to 5 and records calls (`REDUCE`, `NEWOBJ`, `BUILD`) as
//! plain nodes; what a node means is for the caller ([`torch`](super::torch)) to decide. Values live in one arena
//! and refer to each other by index, so that neither deep nesting nor cycles can exhaust the stack. Every opcode
//! takes at least one byte and adds at most one node, which bounds memory by the size of the input.

use std::fmt;

mod machine;

/// Longest pickle that is read; the state dict of a large BLIP-2 takes about 0.2 MB, with an optimizer about 1 MB.
const MAX_BYTES: usize = 32 << 20;

/// What is wrong with a pickle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PickleFault {
    /// The program ends before its STOP.
    #[error("the pickle is cut off at byte {offset}")]
    Truncated {
        /// Where it ends.
        offset: usize,
    },
    /// An opcode that no torch state dict contains.
    #[error("unknown pickle opcode 0x{opcode:02x} at byte {offset}")]
    Opcode {
        /// The opcode.
        opcode: u8,
        /// Where.
        offset: usize,
    },
    /// An opcode finds too few values on the stack.
    #[error("the pickle takes a value that is not there at byte {offset}")]
    Stack {
        /// Where.
        offset: usize,
    },
    /// A reference to a value that was never stored.
    #[error("the pickle refers to an unknown value {index} at byte {offset}")]
    Memo {
        /// Number of the value.
        index: u32,
        /// Where.
        offset: usize,
    },
    /// A string that is not UTF-8, or a name that is not text.
    #[error("invalid text in the pickle at byte {offset}")]
    Text {
        /// Where.
        offset: usize,
    },
    /// A collection opcode applied to another kind of value.
    #[error("the pickle adds to a value that is no collection at byte {offset}")]
    NotACollection {
        /// Where.
        offset: usize,
    },
    /// More values than any checkpoint has.
    #[error("the pickle is larger than any checkpoint's")]
    TooLarge,
}

/// Index of a value in a [`Pickle`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Id(u32);

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// One value. Text and bytes are borrowed from the input.
#[derive(Debug, Clone)]
pub enum Node<'a> {
    /// `None`
    None,
    /// `True`, `False`
    Bool(bool),
    /// An integer of at most 64 bits.
    Int(i64),
    /// A longer integer, little-endian two's complement.
    BigInt(&'a [u8]),
    /// A float.
    Float(f64),
    /// Text.
    Str(&'a str),
    /// Bytes.
    Bytes(&'a [u8]),
    /// A tuple.
    Tuple(Vec<Id>),
    /// A list, set or frozen set.
    List(Vec<Id>),
    /// A dictionary, in order; a later entry does not replace an earlier one of equal key.
    Dict(Vec<(Id, Id)>),
    /// A class or function, named but never looked up.
    Global {
        /// Python module.
        module: &'a str,
        /// Name in the module.
        name: &'a str,
    },
    /// A call that was recorded instead of made.
    Call {
        /// What would be called.
        func: Id,
        /// Its arguments, a tuple.
        args: Id,
        /// Entries set on the result (subclasses of dict).
        entries: Vec<(Id, Id)>,
    },
    /// A reference to something outside the pickle; torch uses these for storages.
    Persistent(Id),
}

/// All values of one pickle.
#[derive(Debug)]
pub struct Pickle<'a> {
    nodes: Vec<Node<'a>>,
    root: Id,
    consumed: usize,
}

impl<'a> Pickle<'a> {
    /// Reads one pickle from the start of `input`; what follows its STOP is left alone.
    pub fn parse(input: &'a [u8]) -> Result<Self, PickleFault> {
        let window = &input[..input.len().min(MAX_BYTES)];
        match machine::run(window) {
            Ok((nodes, root, consumed)) => Ok(Self {
                nodes,
                root,
                consumed,
            }),
            Err(PickleFault::Truncated { .. }) if window.len() < input.len() => Err(PickleFault::TooLarge),
            Err(fault) => Err(fault),
        }
    }

    /// The value that the pickle stands for.
    pub fn root(&self) -> Id {
        self.root
    }

    /// Length of the pickle in bytes.
    pub fn consumed(&self) -> usize {
        self.consumed
    }

    /// All values, in the order in which they were made.
    pub fn ids(&self) -> impl Iterator<Item = Id> + use<> {
        (0..self.nodes.len() as u32).map(Id)
    }

    /// The value behind an index of this pickle.
    pub fn node(&self, id: Id) -> &Node<'a> {
        &self.nodes[id.0 as usize]
    }

    /// Text, if the value is text.
    pub fn as_str(&self, id: Id) -> Option<&'a str> {
        match self.node(id) {
            Node::Str(s) => Some(s),
            // python 2 wrote text as bytes
            Node::Bytes(b) => std::str::from_utf8(b).ok(),
            _ => None,
        }
    }

    /// An integer, if the value is one.
    pub fn as_int(&self, id: Id) -> Option<i64> {
        match self.node(id) {
            Node::Int(i) => Some(*i),
            _ => None,
        }
    }

    /// Items of a tuple, a list or a `torch.Size`.
    pub fn as_items(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Tuple(items) | Node::List(items) => Some(items),
            Node::Call { func, args, .. } if self.as_global(*func) == Some(("torch", "Size")) => {
                let (Node::Tuple(args) | Node::List(args)) = self.node(*args) else {
                    return None;
                };
                match self.node(*args.first()?) {
                    Node::Tuple(items) | Node::List(items) => Some(items),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// Module and name of a class or function.
    pub fn as_global(&self, id: Id) -> Option<(&'a str, &'a str)> {
        match self.node(id) {
            Node::Global { module, name } => Some((module, name)),
            _ => None,
        }
    }

    /// Entries of a dictionary, `OrderedDict` or another class that entries were set on.
    pub fn as_entries(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.node(id) {
            Node::Dict(entries) => Some(entries),
            Node::Call { entries, func, .. }
                if !entries.is_empty() || self.as_global(*func) == Some(("collections", "OrderedDict")) =>
            {
                Some(entries)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fault(bytes: &[u8]) -> PickleFault {
        Pickle::parse(bytes).unwrap_err()
    }

    #[test]
    fn reads_what_python_writes() {
        // pickle.dumps({"a": (1, -2, True, None), "b": [0.5, 2**70]}, 2)
        let bytes = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01(K\x01J\xfe\xff\xff\xff\x88Ntq\x02X\x01\x00\x00\x00bq\x03]q\x04(G?\xe0\x00\x00\x00\x00\x00\x00\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00@eu.tail";
        let pickle = Pickle::parse(bytes).unwrap();
        assert_eq!(&bytes[pickle.consumed()..], b"tail");
        let entries = pickle.as_entries(pickle.root()).unwrap();
        assert_eq!(pickle.as_str(entries[0].0), Some("a"));
        let tuple = pickle.as_items(entries[0].1).unwrap();
        assert_eq!(pickle.as_int(tuple[1]), Some(-2));
        assert!(matches!(pickle.node(tuple[3]), Node::None));
        let list = pickle.as_items(entries[1].1).unwrap();
        assert!(matches!(pickle.node(list[0]), Node::Float(f) if *f == 0.5));
        assert!(matches!(pickle.node(list[1]), Node::BigInt(b) if b.len() == 9));
    }

    #[test]
    fn long_integers_are_read_by_value_not_by_length() {
        let int = |bytes: &[u8]| {
            let program = [&[0x8a, bytes.len() as u8], bytes, b"."].concat();
            let pickle = Pickle::parse(&program).unwrap();
            pickle.as_int(pickle.root())
        };
        assert_eq!(int(&[]), Some(0));
        assert_eq!(int(&[0x80]), Some(-128));
        assert_eq!(int(&[0x80, 0]), Some(128));
        assert_eq!(int(&[0, 0, 0, 0, 1, 0, 0, 0, 0, 0]), Some(1 << 32));
        assert_eq!(int(&[0xfe, 255, 255, 255, 255, 255, 255, 255, 255]), Some(-2));
        assert_eq!(int(&[0, 0, 0, 0, 0, 0, 0, 0x80, 0]), None);
        assert_eq!(int(&[255, 255, 255, 255, 255, 255, 255, 0x7f, 255]), None);
    }

    #[test]
    fn protocol_4_names_and_memo() {
        // pickle.dumps([collections.OrderedDict, "x", "x"], 4) with the string memoised
        let bytes = b"\x80\x04\x95\x2c\x00\x00\x00\x00\x00\x00\x00]\x94(\x8c\x0bcollections\x94\x8c\x0bOrderedDict\x94\x93\x94\x8c\x01x\x94h\x04e.";
        let pickle = Pickle::parse(bytes).unwrap();
        let items = pickle.as_items(pickle.root()).unwrap();
        assert_eq!(pickle.as_global(items[0]), Some(("collections", "OrderedDict")));
        assert_eq!(items[1], items[2]);
    }

    #[test]
    fn a_call_is_recorded_not_made() {
        let bytes = b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.";
        let pickle = Pickle::parse(bytes).unwrap();
        let Node::Call { func, .. } = pickle.node(pickle.root()) else {
            panic!("not a call")
        };
        assert_eq!(pickle.as_global(*func), Some(("os", "system")));
    }

    #[test]
    fn broken_programs_are_faults() {
        assert_eq!(fault(b""), PickleFault::Truncated { offset: 0 });
        assert_eq!(fault(b"\x80\x02."), PickleFault::Stack { offset: 2 });
        assert_eq!(fault(b"N0."), PickleFault::Stack { offset: 2 });
        assert_eq!(fault(b"h\x07."), PickleFault::Memo { index: 7, offset: 0 });
        assert_eq!(fault(b"Nt."), PickleFault::Stack { offset: 1 });
        assert_eq!(fault(b"NN\x87."), PickleFault::Stack { offset: 2 });
        assert_eq!(fault(b"NNs."), PickleFault::Stack { offset: 2 });
        assert_eq!(fault(b"NNNs."), PickleFault::NotACollection { offset: 3 });
        assert_eq!(fault(b"}(Nu."), PickleFault::Stack { offset: 3 });
        assert_eq!(
            fault(b"X\xff\xff\xff\xffab"),
            PickleFault::Truncated { offset: 5 }
        );
        assert_eq!(
            fault(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff"),
            PickleFault::Truncated { offset: 9 }
        );
        assert_eq!(fault(b"X\x01\x00\x00\x00\xff."), PickleFault::Text { offset: 5 });
        assert_eq!(
            fault(b"i"),
            PickleFault::Opcode {
                opcode: b'i',
                offset: 0
            }
        );
        // values below a mark are out of reach until the mark is gone
        assert_eq!(fault(b"N(\x85."), PickleFault::Stack { offset: 2 });
        assert!(Pickle::parse(b"N(0.").is_ok());
    }

    #[test]
    fn cycles_and_depth_cost_nothing() {
        // a list that holds itself
        assert!(Pickle::parse(b"]q\x00h\x00a.").is_ok());
        // a million nested tuples: recursion on drop would overflow the stack
        let mut deep = vec![b')'];
        deep.resize(1_000_000, 0x85);
        deep.push(b'.');
        assert!(Pickle::parse(&deep).is_ok());
    }

    #[test]
    fn a_bomb_hits_the_limit() {
        assert_eq!(fault(&vec![b'N'; 2 << 20]), PickleFault::TooLarge);
        assert_eq!(fault(&vec![b'('; 2 << 20]), PickleFault::TooLarge);
        let mut dup = vec![b'2'; 2 << 20];
        dup[0] = b'N';
        assert_eq!(fault(&dup), PickleFault::TooLarge);
        let mut memo = vec![0x94; 2 << 20];
        memo[0] = b'N';
        assert_eq!(fault(&memo), PickleFault::TooLarge);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Pickle::parse(&bytes);
        }

        #[test]
        fn arbitrary_opcodes_never_panic(ops in proptest::collection::vec(proptest::sample::select(b"(0122NK)]}aesutdlbRQqhjrcX\x81\x85\x86\x87\x88\x8c\x8f\x90\x91\x92\x93\x94.\x00\x01\n".to_vec()), 0..200)) {
            if let Ok(pickle) = Pickle::parse(&ops) {
                let _ = (pickle.as_entries(pickle.root()), pickle.as_items(pickle.root()));
            }
        }
    }
}
