//! One input after the other: made, tried, and made smaller where it showed a fault.
//!
//! Invariant: a fault of the code under test is a fault of the input, never the end of the program; but for a stack that
//! overflows, which ends it with the name of the thread: the target, and the number from which to look.

use std::{
    cell::RefCell,
    fmt::Debug,
    panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind},
    time::{Duration, Instant},
};

use proptest::{
    strategy::{BoxedStrategy, Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use sha2::{Digest, Sha256};

/// As much as a worker of the daemon has.
const STACK_BYTES: usize = 2 * 1024 * 1024;
/// Inputs tried on one thread: where a stack overflows, this is how closely the input is known.
const BATCH: u64 = 1000;
/// Longest time for one input. All of them take milliseconds; the machine may be busy with something else.
const TIME_MAX: Duration = Duration::from_secs(10);
/// Most tries to make an input smaller.
const SHRINKS_MAX: u32 = 2000;
/// Longest time for that.
const SHRINK_TIME_MAX: Duration = Duration::from_secs(60);
/// Most of an input that is printed, in characters.
const SHOWN_MAX: usize = 4000;
/// Between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps where a panic was, for the fault that is made of it.
pub fn note_panic(info: &PanicHookInfo<'_>) {
    PANIC.with_borrow_mut(|noted| *noted = Some(info.to_string().replace('\n', ": ")));
}

/// How far an input came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// It was taken, and everything that is made of it was looked at.
    AllTheWay,
    /// It was refused as it should be.
    Refused,
}

/// Something that reads what others write, and what must hold whatever they write.
pub trait Subject {
    /// What is tried.
    type Input: Debug;

    /// Makes inputs.
    fn inputs(&self) -> BoxedStrategy<Self::Input>;

    /// Tries one.
    ///
    /// # Errors
    /// What did not hold.
    fn judge(&mut self, input: &Self::Input) -> Result<Came, String>;
}

/// What is to be tried.
#[derive(Debug, Clone)]
pub struct Order {
    /// The target.
    pub name: &'static str,
    /// Where all chance comes from.
    pub seed: u64,
    /// The first input's number.
    pub from: u64,
    /// How many.
    pub inputs: u64,
    /// For how long at most.
    pub minutes: Option<u64>,
    /// Whether the target has a fault planted in it.
    pub planted: bool,
    /// Whether nobody looks at the progress.
    pub quiet: bool,
}

/// What came of a target.
#[derive(Debug)]
pub struct Tally {
    /// The target.
    pub name: &'static str,
    /// Inputs that were tried.
    pub inputs: u64,
    /// Those of them that were taken, and not refused.
    pub all_the_way: u64,
    /// How long it took.
    pub took: Duration,
    /// The longest time that one input took.
    pub slowest: Duration,
    /// What was found; then it ended there.
    pub fault: Option<Fault>,
}

/// An input that something does not hold for.
#[derive(Debug)]
pub struct Fault {
    /// Its number.
    pub number: u64,
    /// What does not hold.
    pub words: String,
    /// The input, made smaller.
    pub input: String,
}

/// Tries as many inputs as are asked for, until one shows a fault.
pub fn drive<S: Subject + Send>(mut subject: S, order: &Order) -> Tally {
    let began = Instant::now();
    let mut tally = Tally {
        name: order.name,
        inputs: 0,
        all_the_way: 0,
        took: Duration::ZERO,
        slowest: Duration::ZERO,
        fault: None,
    };
    let until = order.minutes.map(|minutes| began + Duration::from_secs(60 * minutes));
    let mut told = began;
    let mut next = order.from;
    let end = order.from.saturating_add(order.inputs);
    while next < end && tally.fault.is_none() && until.is_none_or(|until| Instant::now() < until) {
        let numbers = next..end.min(next + BATCH);
        next = numbers.end;
        std::thread::scope(|scope| {
            let batch = std::thread::Builder::new()
                .name(format!("{} --seed {} --from {}", order.name, order.seed, numbers.start))
                .stack_size(STACK_BYTES);
            let (subject, tally) = (&mut subject, &mut tally);
            let tried = batch.spawn_scoped(scope, move || try_batch(subject, order, numbers, tally));
            tried.expect("a thread").join().expect("panics are caught");
        });
        if !order.quiet && told.elapsed() > PROGRESS_EVERY {
            told = Instant::now();
            eprintln!("  {}: {} inputs in {} s", order.name, tally.inputs, began.elapsed().as_secs());
        }
    }
    tally.took = began.elapsed();
    tally
}

fn try_batch<S: Subject>(subject: &mut S, order: &Order, numbers: std::ops::Range<u64>, tally: &mut Tally) {
    let strategy = subject.inputs();
    for number in numbers {
        let mut tree = strategy.new_tree(&mut chance(order, number)).expect("a strategy that rejects nothing");
        tally.inputs += 1;
        match judge(subject, &tree.current(), &mut tally.slowest) {
            Ok(Came::AllTheWay) => tally.all_the_way += 1,
            Ok(Came::Refused) => {}
            Err(words) => {
                let (words, input) = shrink(subject, tree.as_mut(), words);
                tally.fault = Some(Fault { number, words, input });
                return;
            }
        }
    }
}

/// The chance of one input.
fn chance(order: &Order, number: u64) -> TestRunner {
    let seed = Sha256::new_with_prefix(order.name)
        .chain_update(order.seed.to_be_bytes())
        .chain_update(number.to_be_bytes())
        .finalize();
    TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &seed))
}

fn judge<S: Subject>(subject: &mut S, input: &S::Input, slowest: &mut Duration) -> Result<Came, String> {
    let mut took = Duration::MAX;
    // Once more, if it took long: the machine may have been busy.
    for _ in 0..2 {
        let began = Instant::now();
        let judged = catch_unwind(AssertUnwindSafe(|| subject.judge(input)));
        let came = judged.unwrap_or_else(|_| {
            let noted = PANIC.with_borrow_mut(Option::take);
            Err(format!("a panic: {}", noted.unwrap_or_else(|| "on another thread".to_owned())))
        })?;
        took = took.min(began.elapsed());
        if took < TIME_MAX {
            *slowest = took.max(*slowest);
            return Ok(came);
        }
    }
    Err(format!("it takes {} s", took.as_secs()))
}

/// Looks for a smaller input that shows a fault too.
fn shrink<S: Subject>(
    subject: &mut S,
    tree: &mut dyn ValueTree<Value = S::Input>,
    mut words: String,
) -> (String, String) {
    let began = Instant::now();
    let mut smallest = format!("{:?}", tree.current());
    let mut goes_on = tree.simplify();
    let mut ignored = Duration::ZERO;
    for _ in 0..SHRINKS_MAX {
        if !goes_on || began.elapsed() > SHRINK_TIME_MAX {
            break;
        }
        let input = tree.current();
        goes_on = match judge(subject, &input, &mut ignored) {
            Err(fault) => {
                (words, smallest) = (fault, format!("{input:?}"));
                tree.simplify()
            }
            Ok(_) => tree.complicate(),
        };
    }
    if let Some((end, _)) = smallest.char_indices().nth(SHOWN_MAX) {
        smallest.truncate(end);
        smallest.push_str(" ...");
    }
    (words, smallest)
}
