//! One of several processes that share the units of an evaluation.

use std::fmt;
use std::str::FromStr;

/// Most processes that can share one evaluation.
const MAX: usize = 100_000;

/// A shard cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no shard; write I/N with I from 1 to N, such as 2/8")]
pub struct ShardError(String);

/// Process `index` of `count`. Units are dealt in turn, so that every process gets its share of
/// whatever lies together in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    count: usize,
}

impl Default for Shard {
    /// The only process.
    fn default() -> Self {
        Self { index: 0, count: 1 }
    }
}

impl Shard {
    /// Its place, from 0.
    pub fn index(self) -> usize {
        self.index
    }

    /// Number of processes.
    pub fn count(self) -> usize {
        self.count
    }

    /// Whether unit `at` of the list belongs to it.
    pub fn holds(self, at: usize) -> bool {
        at % self.count == self.index
    }
}

impl FromStr for Shard {
    type Err = ShardError;

    fn from_str(text: &str) -> Result<Self, ShardError> {
        let parse = || {
            let (index, count) = text.split_once('/')?;
            let (index, count) = (index.parse::<usize>().ok()?, count.parse::<usize>().ok()?);
            ((1..=count).contains(&index) && count <= MAX).then(|| Self { index: index - 1, count })
        };
        parse().ok_or_else(|| ShardError(text.to_owned()))
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index + 1, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_counted_from_one_and_deal_the_units_in_turn() {
        let shard: Shard = "2/3".parse().unwrap();
        assert_eq!((shard.index(), shard.count(), shard.to_string()), (1, 3, "2/3".to_owned()));
        let held: Vec<usize> = (0..8).filter(|&i| shard.holds(i)).collect();
        assert_eq!(held, [1, 4, 7]);
        assert!((0..8).all(|i| Shard::default().holds(i)));
    }

    #[test]
    fn what_is_no_shard_is_refused_with_an_example() {
        for text in ["0/3", "4/3", "1", "1/0", "a/b", "-1/2", "1/100001", ""] {
            let message = text.parse::<Shard>().unwrap_err().to_string();
            assert!(message.contains("such as 2/8"), "{message}");
        }
    }
}
