//! Reads the pickles of `PyTorch`'s weight files without running anything in them.
//!
//! A pickle is a small program. Of its instructions those are known that `torch.save` writes
//! for a state dictionary; of the functions that it may call, those four that put a dictionary
//! and tensors together, and they are only noted here, not called. Everything else is refused.
//!
//! Objects live in one list and refer to each other by their place in it, so that no nesting,
//! however deep, and no cycle needs recursion.

use std::collections::HashMap;

use super::weights::NumberType;

/// Longest pickle that is read, in bytes: ten times that of a network of 1,000 layers.
pub(super) const MAX_PICKLE: u64 = 4 << 20;

/// A tensor as the pickle describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TensorRecord {
    /// Name of the storage, that of a member of the archive.
    pub storage: String,
    /// Type of the storage's numbers.
    pub kind: NumberType,
    /// Numbers in the storage.
    pub length: u64,
    /// Place of the first number.
    pub offset: u64,
    pub shape: Vec<u64>,
    /// Numbers from one entry to the next, for each axis.
    pub strides: Vec<u64>,
}

/// The tensors of a pickled state dictionary by name, or why it is refused.
///
/// The dictionary may be an entry `state_dict` of another one, as training scripts write it.
pub(super) fn state_dict(pickle: &[u8]) -> Result<Vec<(String, TensorRecord)>, String> {
    let mut machine = Machine { bytes: pickle, ..Machine::default() };
    let root = machine.run()?;
    machine.tensors(root)
}

/// Place of an object in [`Machine::objects`].
type Id = usize;

#[derive(Debug, Clone, PartialEq)]
enum Object {
    /// `None`, a truth value, a fraction: nothing that a tensor is made of.
    Opaque,
    Int(i64),
    Text(String),
    /// A tuple or a list.
    Sequence(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Function(Function),
    Storage {
        kind: NumberType,
        name: String,
        length: u64,
    },
    Tensor(TensorRecord),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Function {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(NumberType),
}

impl Function {
    fn named(module: &str, name: &str) -> Result<Self, String> {
        let storage = name.strip_suffix("Storage").filter(|_| module == "torch");
        match (module, name, storage) {
            ("collections", "OrderedDict", _) => Ok(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2", _) => Ok(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter", _) => Ok(Self::RebuildParameter),
            (_, _, Some("Float")) => Ok(Self::Storage(NumberType::F32)),
            (_, _, Some("Double")) => Ok(Self::Storage(NumberType::F64)),
            (_, _, Some("Half")) => Ok(Self::Storage(NumberType::F16)),
            (_, _, Some("BFloat16")) => Ok(Self::Storage(NumberType::BF16)),
            (_, _, Some(other @ ("Long" | "Int" | "Short" | "Char" | "Byte" | "Bool"))) => {
                Ok(Self::Storage(NumberType::Other(other.to_owned())))
            }
            _ => Err(format!(
                "it wants to call {module}.{name}, which weights do not need; save the state dictionary alone"
            )),
        }
    }
}

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    place: usize,
    objects: Vec<Object>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl Machine<'_> {
    fn run(&mut self) -> Result<Id, String> {
        loop {
            let opcode = self.byte()?;
            match opcode {
                // PROTO: the number of the protocol; its instructions show by themselves.
                0x80 => {
                    self.byte()?;
                }
                b'(' => self.marks.push(self.stack.len()),
                b'N' | 0x88 | 0x89 => self.push(Object::Opaque),
                b'G' => {
                    self.take::<8>()?;
                    self.push(Object::Opaque);
                }
                b'K' => {
                    let value = self.byte()?;
                    self.push(Object::Int(value.into()));
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.take()?);
                    self.push(Object::Int(value.into()));
                }
                b'J' => {
                    let value = i32::from_le_bytes(self.take()?);
                    self.push(Object::Int(value.into()));
                }
                0x8a => {
                    let value = self.long()?;
                    self.push(Object::Int(value));
                }
                b'X' => {
                    let length = u32::from_le_bytes(self.take()?);
                    let text = self.text(length as usize)?;
                    self.push(Object::Text(text));
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    let function = Function::named(&module, &name)?;
                    self.push(Object::Function(function));
                }
                b'}' => self.push(Object::Dict(Vec::new())),
                b')' | b']' => self.push(Object::Sequence(Vec::new())),
                b't' => {
                    let items = self.marked()?;
                    self.push(Object::Sequence(items));
                }
                0x85..=0x87 => {
                    let items = self.top(usize::from(opcode - 0x84))?;
                    self.push(Object::Sequence(items));
                }
                b'a' => {
                    let items = self.top(1)?;
                    self.append(&items)?;
                }
                b'e' => {
                    let items = self.marked()?;
                    self.append(&items)?;
                }
                b's' => {
                    let items = self.top(2)?;
                    self.set(&items)?;
                }
                b'u' => {
                    let items = self.marked()?;
                    self.set(&items)?;
                }
                b'q' => {
                    let key = self.byte()?;
                    self.memorise(key.into())?;
                }
                b'r' => {
                    let key = u32::from_le_bytes(self.take()?);
                    self.memorise(key)?;
                }
                b'h' => {
                    let key = self.byte()?;
                    self.recall(key.into())?;
                }
                b'j' => {
                    let key = u32::from_le_bytes(self.take()?);
                    self.recall(key)?;
                }
                b'Q' => {
                    let id = self.pop()?;
                    let storage = self.storage(id)?;
                    self.push(storage);
                }
                b'R' => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    self.call(function, arguments)?;
                }
                // BUILD: the attributes of a dictionary, which number its layers' versions.
                b'b' => {
                    self.pop()?;
                    let target = self.pop()?;
                    if !matches!(self.objects[target], Object::Dict(_)) {
                        return Err("it sets attributes of what is no dictionary".to_owned());
                    }
                    self.stack.push(target);
                }
                b'.' => return self.pop(),
                other => {
                    return Err(format!(
                        "instruction 0x{other:02x} at byte {} is none that torch.save writes",
                        self.place - 1
                    ));
                }
            }
        }
    }

    fn byte(&mut self) -> Result<u8, String> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let bytes = self.slice(N)?;
        <[u8; N]>::try_from(bytes).map_err(|e| e.to_string())
    }

    fn slice(&mut self, length: usize) -> Result<&[u8], String> {
        let rest = self.bytes.get(self.place..).unwrap_or_default();
        let found = rest.get(..length).ok_or("the pickle ends too early")?;
        self.place += length;
        Ok(found)
    }

    fn text(&mut self, length: usize) -> Result<String, String> {
        let bytes = self.slice(length)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| "a name in it is not UTF-8".to_owned())
    }

    fn line(&mut self) -> Result<String, String> {
        let rest = self.bytes.get(self.place..).unwrap_or_default();
        let length = rest.iter().position(|&b| b == b'\n').ok_or("the pickle ends too early")?;
        let text = self.text(length)?;
        self.place += 1;
        Ok(text)
    }

    /// A whole number of up to eight bytes, least significant first, in two's complement.
    fn long(&mut self) -> Result<i64, String> {
        let length = usize::from(self.byte()?);
        let bytes = self.slice(length)?;
        if length > 8 {
            return Err(format!("a number in it has {length} bytes"));
        }
        let negative = bytes.last().is_some_and(|&b| b >= 0x80);
        let mut all = [if negative { 0xff } else { 0 }; 8];
        all[..length].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(all))
    }

    fn push(&mut self, object: Object) {
        self.stack.push(self.objects.len());
        self.objects.push(object);
    }

    /// Takes the uppermost object, which must lie above the last mark.
    fn pop(&mut self) -> Result<Id, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let id = self.stack.pop().filter(|_| self.stack.len() >= floor);
        id.ok_or_else(|| "an instruction finds nothing to work on".to_owned())
    }

    fn top(&mut self, count: usize) -> Result<Vec<Id>, String> {
        let mut items = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        Ok(items)
    }

    /// Takes everything above the last mark, and the mark.
    fn marked(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("an instruction finds no mark")?;
        Ok(self.stack.split_off(mark))
    }

    fn last(&self) -> Result<Id, String> {
        let id = self.stack.last().copied();
        id.ok_or_else(|| "an instruction finds nothing to work on".to_owned())
    }

    fn append(&mut self, items: &[Id]) -> Result<(), String> {
        let target = self.last()?;
        match &mut self.objects[target] {
            Object::Sequence(list) => list.extend_from_slice(items),
            _ => return Err("it appends to what is no list".to_owned()),
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Result<(), String> {
        let target = self.last()?;
        let (pairs, rest) = items.as_chunks::<2>();
        match &mut self.objects[target] {
            Object::Dict(dict) if rest.is_empty() => {
                dict.extend(pairs.iter().map(|&[key, value]| (key, value)));
            }
            _ => return Err("it sets entries of what is no dictionary".to_owned()),
        }
        Ok(())
    }

    fn memorise(&mut self, key: u32) -> Result<(), String> {
        let id = self.last()?;
        self.memo.insert(key, id);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), String> {
        let id = *self.memo.get(&key).ok_or("it recalls what it has not memorised")?;
        self.stack.push(id);
        Ok(())
    }

    fn items(&self, id: Id) -> &[Id] {
        match &self.objects[id] {
            Object::Sequence(items) => items,
            _ => &[],
        }
    }

    fn number(&self, id: Id) -> Result<u64, String> {
        match self.objects[id] {
            Object::Int(value) if value >= 0 => Ok(value as u64),
            _ => Err("a size in it is no number from 0".to_owned()),
        }
    }

    fn numbers(&self, id: Id) -> Result<Vec<u64>, String> {
        self.items(id).iter().map(|&item| self.number(item)).collect()
    }

    /// `('storage', type, name, device, length)`.
    fn storage(&self, id: Id) -> Result<Object, String> {
        let &[_, kind, name, _, length] = self.items(id) else {
            return Err("it refers to what is no storage".to_owned());
        };
        match (&self.objects[kind], &self.objects[name]) {
            (Object::Function(Function::Storage(kind)), Object::Text(name)) => {
                let (kind, name) = (kind.clone(), name.clone());
                Ok(Object::Storage { kind, name, length: self.number(length)? })
            }
            _ => Err("it refers to what is no storage".to_owned()),
        }
    }

    fn call(&mut self, function: Id, arguments: Id) -> Result<(), String> {
        let made = match (&self.objects[function], self.items(arguments)) {
            (Object::Function(Function::OrderedDict), []) => Object::Dict(Vec::new()),
            (Object::Function(Function::RebuildParameter), &[tensor, ..]) => {
                self.stack.push(tensor);
                return Ok(());
            }
            // storage, offset, size, stride, and what only training needs
            (Object::Function(Function::RebuildTensor), &[storage, offset, shape, strides, ..]) => {
                let Object::Storage { kind, name, length } = &self.objects[storage] else {
                    return Err("a tensor in it has no storage".to_owned());
                };
                Object::Tensor(TensorRecord {
                    storage: name.clone(),
                    kind: kind.clone(),
                    length: *length,
                    offset: self.number(offset)?,
                    shape: self.numbers(shape)?,
                    strides: self.numbers(strides)?,
                })
            }
            _ => return Err("a call in it has other arguments than torch.save writes".to_owned()),
        };
        self.push(made);
        Ok(())
    }

    fn tensors(&self, root: Id) -> Result<Vec<(String, TensorRecord)>, String> {
        let Object::Dict(mut entries) = self.objects[root].clone() else {
            return Err("it holds no dictionary of weights; save the state dictionary".to_owned());
        };
        let nested = entries.iter().find_map(|&(key, value)| {
            match (&self.objects[key], &self.objects[value]) {
                (Object::Text(key), Object::Dict(inner)) if key == "state_dict" => Some(inner),
                _ => None,
            }
        });
        if let Some(inner) = nested {
            entries.clone_from(inner);
        }
        let tensors = entries.iter().filter_map(|&(key, value)| {
            match (&self.objects[key], &self.objects[value]) {
                (Object::Text(name), Object::Tensor(record)) => {
                    Some((name.clone(), record.clone()))
                }
                _ => None,
            }
        });
        Ok(tensors.collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `{name: tensor}` as `torch.save` writes it, without memoisation.
    fn pickle(storage_type: &str) -> Vec<u8> {
        let mut p = b"\x80\x02ccollections\nOrderedDict\n)R(X\x01\0\0\0w".to_vec();
        p.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\n");
        p.extend(storage_type.as_bytes());
        p.extend(b"\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQK\x01K\x02K\x02\x86K\x01K\x02\x86\x89");
        p.extend(b"ccollections\nOrderedDict\n)RtRu.");
        p
    }

    #[test]
    fn a_state_dictionary_gives_its_tensors() {
        let found = state_dict(&pickle("FloatStorage")).unwrap();
        let record = TensorRecord {
            storage: "0".to_owned(),
            kind: NumberType::F32,
            length: 6,
            offset: 1,
            shape: vec![2, 2],
            strides: vec![1, 2],
        };
        assert_eq!(found, [("w".to_owned(), record)]);
    }

    #[test]
    fn every_other_function_is_refused_by_name() {
        for (module, name) in [
            ("os", "system"),
            ("builtins", "eval"),
            ("torch", "load"),
            ("collections", "FloatStorage"),
            ("torch", "SecretStorage"),
        ] {
            let program = format!("\u{2}c{module}\n{name}\n(X\u{2}\0\0\0lstR.");
            let bytes: Vec<u8> = [b"\x80", program.as_bytes()].concat();
            let reason = state_dict(&bytes).unwrap_err();
            assert!(reason.contains(&format!("{module}.{name}")), "{reason}");
        }
    }

    #[test]
    fn deep_nesting_and_cycles_are_harmless() {
        let mut deep = b"\x80\x02)".to_vec();
        deep.resize(1 << 20, 0x85);
        deep.push(b'.');
        assert!(state_dict(&deep).is_err());
        // A dictionary that is its own entry.
        assert_eq!(state_dict(b"\x80\x02}q\0X\x01\0\0\0ah\0s."), Ok(Vec::new()));
    }

    #[test]
    fn numbers_of_every_width_are_read() {
        let mut machine =
            Machine { bytes: b"\x01\xff\x02\0\x01\0\x09123456789", ..Machine::default() };
        assert_eq!(machine.long(), Ok(-1));
        assert_eq!(machine.long(), Ok(256));
        assert_eq!(machine.long(), Ok(0));
        assert!(machine.long().is_err());
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_are_there_is_an_answer(
            place in 0_usize..170,
            junk in prop::collection::vec(any::<u8>(), 1..8),
            end in 0_usize..180,
        ) {
            let mut bytes = pickle("FloatStorage");
            for (i, byte) in junk.into_iter().enumerate() {
                if let Some(slot) = bytes.get_mut(place + i) {
                    *slot = byte;
                }
            }
            bytes.truncate(end);
            let _ = state_dict(&bytes);
        }
    }
}
