//! Topics by their ARNs, and which places on the web belong to one.
//!
//! Invariant: a place is recognised by its text, character by character, before any URL parser sees it, so that no two
//! parsers can disagree about its host.

use std::fmt;

use url::form_urlencoded;

/// Longest region's name; the longest there is has 14 characters.
const REGION_CHARS_MAX: usize = 32;
/// Longest topic's name that SNS gives.
const NAME_CHARS_MAX: usize = 256;
/// Longest path of a certificate; SNS's have some sixty characters.
const PATH_CHARS_MAX: usize = 200;
/// Longest query of a confirmation; SNS's have some five hundred characters.
const QUERY_CHARS_MAX: usize = 2048;

/// One SNS topic: `arn:aws:sns:eu-west-1:123456789012:ses-events`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicArn {
    arn: String,
    partition: Partition,
    region: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Partition {
    Commercial,
    China,
    UsGov,
    EuropeanSovereign,
}

impl Partition {
    fn of(name: &str) -> Option<Self> {
        match name {
            "aws" => Some(Self::Commercial),
            "aws-cn" => Some(Self::China),
            "aws-us-gov" => Some(Self::UsGov),
            "aws-eusc" => Some(Self::EuropeanSovereign),
            _ => None,
        }
    }

    const fn suffix(self) -> &'static str {
        match self {
            Self::Commercial | Self::UsGov => "amazonaws.com",
            Self::China => "amazonaws.com.cn",
            Self::EuropeanSovereign => "amazonaws.eu",
        }
    }
}

/// Why a text is no topic's ARN; the words follow its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TopicArnError {
    /// Not six parts between colons, or not of SNS.
    #[error("is not arn:PARTITION:sns:REGION:ACCOUNT:NAME")]
    Form,
    /// Nobody knows where its certificates would lie.
    #[error("is of a partition that is not one of aws, aws-cn, aws-us-gov, aws-eusc")]
    Partition,
    /// Not a region's name.
    #[error("has a region that is not of lower-case letters, digits and -")]
    Region,
    /// Not an account's number.
    #[error("has an account that is not 12 digits")]
    Account,
    /// Not a topic's name. FIFO topics, whose names end in `.fifo`, do not reach HTTP endpoints.
    #[error("has a name that is not of letters, digits, - and _ (a FIFO topic cannot reach an HTTP endpoint)")]
    Name,
}

impl TopicArn {
    /// Reads one.
    ///
    /// # Errors
    /// When it is no ARN of a standard topic.
    pub fn parse(text: &str) -> Result<Self, TopicArnError> {
        let parts: Vec<&str> = text.split(':').collect();
        let &["arn", partition, "sns", region, account, name] = parts.as_slice() else {
            return Err(TopicArnError::Form);
        };
        let partition = Partition::of(partition).ok_or(TopicArnError::Partition)?;
        let is_label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if !(3..=REGION_CHARS_MAX).contains(&region.len())
            || !region.bytes().all(is_label)
            || region.starts_with('-')
            || region.ends_with('-')
        {
            return Err(TopicArnError::Region);
        }
        if account.len() != 12 || !account.bytes().all(|b| b.is_ascii_digit()) {
            return Err(TopicArnError::Account);
        }
        let in_name = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if !(1..=NAME_CHARS_MAX).contains(&name.len()) || !name.bytes().all(in_name) {
            return Err(TopicArnError::Name);
        }
        Ok(Self { arn: text.to_owned(), partition, region: region.to_owned() })
    }

    /// As SNS writes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.arn
    }

    /// The only host that is ever asked on behalf of this topic.
    #[must_use]
    pub fn host(&self) -> String {
        format!("sns.{}.{}", self.region, self.partition.suffix())
    }

    /// Names of which a signing certificate must bear one. Old regions share a certificate, later ones have their own.
    #[must_use]
    pub fn signer_names(&self) -> Vec<String> {
        let (region, suffix) = (&self.region, self.partition.suffix());
        let mut names = vec![self.host(), format!("sns-signing.{region}.{suffix}"), format!("sns-{region}.{suffix}")];
        match self.partition {
            Partition::Commercial => names.push("sns.amazonaws.com".to_owned()),
            // Both regions sign with the western one's.
            Partition::UsGov => names.push("sns-us-gov-west-1.amazonaws.com".to_owned()),
            Partition::China | Partition::EuropeanSovereign => {}
        }
        names
    }

    /// Where the signing certificate lies, if that is SNS in the region of this topic.
    #[must_use]
    pub fn certificate_place(&self, url: &str) -> Option<Place> {
        let host = self.host();
        let file = url.strip_prefix("https://")?.strip_prefix(host.as_str())?.strip_prefix('/')?;
        let in_file = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.';
        let is_sound = file.len() <= PATH_CHARS_MAX
            && file.len() > ".pem".len()
            && file.ends_with(".pem")
            && !file.contains("..")
            && !file.starts_with('.')
            && file.bytes().all(in_file);
        is_sound.then(|| Place { host, target: format!("/{file}") })
    }

    /// What confirms the subscription to this topic with this token, if it is SNS's own confirmation and nothing else.
    #[must_use]
    pub fn confirmation_place(&self, url: &str, token: &str) -> Option<Place> {
        let host = self.host();
        let query = url.strip_prefix("https://")?.strip_prefix(host.as_str())?.strip_prefix("/?")?;
        if query.len() > QUERY_CHARS_MAX || !query.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
            return None;
        }
        let wanted = [("Action", "ConfirmSubscription"), ("Token", token), ("TopicArn", self.as_str())];
        let mut found: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
        found.sort();
        let is_sound = found.len() == wanted.len()
            && found.iter().zip(wanted).all(|(pair, (name, value))| pair.0 == name && pair.1 == value);
        is_sound.then(|| Place { host, target: format!("/?{query}") })
    }
}

/// A place that was checked: only such ones are asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    pub(super) host: String,
    /// Path and query.
    pub(super) target: String,
}

impl fmt::Display for Place {
    /// Without the query, which may hold a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.target.split('?').next().unwrap_or_default();
        write!(f, "{}{path}", self.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPIC: &str = "arn:aws:sns:eu-west-1:123456789012:ses-events";

    fn topic(arn: &str) -> TopicArn {
        TopicArn::parse(arn).unwrap_or_else(|error| panic!("{arn} {error}"))
    }

    #[test]
    fn what_is_no_standard_topic_is_told_why() {
        for (text, error) in [
            ("", TopicArnError::Form),
            ("*", TopicArnError::Form),
            ("arn:aws:sqs:eu-west-1:123456789012:ses-events", TopicArnError::Form),
            ("arn:aws:sns:eu-west-1:123456789012", TopicArnError::Form),
            ("arn:aws:sns:eu-west-1:123456789012:a:b", TopicArnError::Form),
            ("arn:aws-iso:sns:us-iso-east-1:123456789012:a", TopicArnError::Partition),
            ("arn:aws:sns::123456789012:a", TopicArnError::Region),
            ("arn:aws:sns:*:123456789012:a", TopicArnError::Region),
            ("arn:aws:sns:evil.example/:123456789012:a", TopicArnError::Region),
            ("arn:aws:sns:eu-west-1:12345678901:a", TopicArnError::Account),
            ("arn:aws:sns:eu-west-1:123456789012:", TopicArnError::Name),
            ("arn:aws:sns:eu-west-1:123456789012:*", TopicArnError::Name),
            ("arn:aws:sns:eu-west-1:123456789012:events.fifo", TopicArnError::Name),
        ] {
            assert_eq!(TopicArn::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn each_partition_has_its_hosts_and_its_signers() {
        for (arn, host, signer) in [
            (TOPIC, "sns.eu-west-1.amazonaws.com", "sns.amazonaws.com"),
            (
                "arn:aws:sns:af-south-1:123456789012:a",
                "sns.af-south-1.amazonaws.com",
                "sns-signing.af-south-1.amazonaws.com",
            ),
            (
                "arn:aws-cn:sns:cn-north-1:123456789012:a",
                "sns.cn-north-1.amazonaws.com.cn",
                "sns-cn-north-1.amazonaws.com.cn",
            ),
            (
                "arn:aws-us-gov:sns:us-gov-east-1:123456789012:a",
                "sns.us-gov-east-1.amazonaws.com",
                "sns-us-gov-west-1.amazonaws.com",
            ),
            (
                "arn:aws-eusc:sns:eusc-de-east-1:123456789012:a",
                "sns.eusc-de-east-1.amazonaws.eu",
                "sns-signing.eusc-de-east-1.amazonaws.eu",
            ),
        ] {
            assert_eq!(topic(arn).host(), host);
            assert!(topic(arn).signer_names().iter().any(|name| name == signer), "{arn}");
        }
        assert!(
            !topic("arn:aws-cn:sns:cn-north-1:123456789012:a").signer_names().contains(&"sns.amazonaws.com".to_owned())
        );
    }

    #[test]
    fn a_certificate_lies_on_the_host_of_the_topics_region_and_nowhere_else() {
        let topic = topic(TOPIC);
        let place = topic.certificate_place("https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-01ab.pem");
        assert_eq!(
            place.expect("SNS's own").to_string(),
            "sns.eu-west-1.amazonaws.com/SimpleNotificationService-01ab.pem"
        );
        for url in [
            "http://sns.eu-west-1.amazonaws.com/a.pem",
            "HTTPS://sns.eu-west-1.amazonaws.com/a.pem",
            "https://sns.eu-west-2.amazonaws.com/a.pem",
            "https://sns.amazonaws.com/a.pem",
            "https://s3.eu-west-1.amazonaws.com/a.pem",
            "https://sns.eu-west-1.s3.amazonaws.com/a.pem",
            "https://sns.eu-west-1.amazonaws.com.evil.example/a.pem",
            "https://sns.eu-west-1.amazonaws.com.cn/a.pem",
            "https://sns.eu-west-1.amazonaws.comevil.example/a.pem",
            "https://evil.example/sns.eu-west-1.amazonaws.com/a.pem",
            "https://sns-eu-west-1.amazonaws.com/a.pem",
            "https://xsns.eu-west-1.amazonaws.com/a.pem",
            "https://sns.eu-west-1.amazonaws.com./a.pem",
            "https://SNS.eu-west-1.amazonaws.com/a.pem",
            "https://sns.eu-west-1.amaz\u{43e}naws.com/a.pem",
            "https://sns.eu-west-1.amazonaws.com@evil.example/a.pem",
            "https://sns.eu-west-1.amazonaws.com:443/a.pem",
            "https://sns.eu-west-1.amazonaws.com:8443/a.pem",
            "https://user@sns.eu-west-1.amazonaws.com/a.pem",
            "https://user:word@sns.eu-west-1.amazonaws.com/a.pem",
            "https://sns.eu-west-1.amazonaws.com\\@evil.example/a.pem",
            "https://sns.eu-west-1.amazonaws.com%2f@evil.example/a.pem",
            "https:\\\\sns.eu-west-1.amazonaws.com/a.pem",
            "https:///sns.eu-west-1.amazonaws.com/a.pem",
            "https://sns.eu-west-1.amazonaws.com/a.pem?x=1",
            "https://sns.eu-west-1.amazonaws.com/?a.pem",
            "https://sns.eu-west-1.amazonaws.com/?Action=Publish&x=.pem",
            "https://sns.eu-west-1.amazonaws.com/a.pem#b",
            "https://sns.eu-west-1.amazonaws.com/#a.pem",
            "https://sns.eu-west-1.amazonaws.com/a.txt",
            "https://sns.eu-west-1.amazonaws.com/.pem",
            "https://sns.eu-west-1.amazonaws.com/a/../b.pem",
            "https://sns.eu-west-1.amazonaws.com/a%2fb.pem",
            "https://sns.eu-west-1.amazonaws.com//evil.example/a.pem",
            "https://sns.eu-west-1.amazonaws.com/a.pem\n",
            "https://sns.eu-west-1.amazonaws.com\t/a.pem",
            " https://sns.eu-west-1.amazonaws.com/a.pem",
            "https://127.0.0.1/a.pem",
            "https://[::1]/a.pem",
            "file:///etc/ssl/a.pem",
            "",
        ] {
            assert_eq!(topic.certificate_place(url), None, "{url}");
        }
    }

    #[test]
    fn a_confirmation_confirms_this_topic_with_this_token_and_does_nothing_else() {
        let topic = topic(TOPIC);
        let at = |query: &str| format!("https://sns.eu-west-1.amazonaws.com/?{query}");
        let sound = format!("Action=ConfirmSubscription&TopicArn={TOPIC}&Token=23abc");
        let place = topic.confirmation_place(&at(&sound), "23abc").expect("SNS's own");
        assert_eq!(place.target, format!("/?{sound}"));
        assert_eq!(place.to_string(), "sns.eu-west-1.amazonaws.com/", "no token in a log");
        let escaped = sound.replace(':', "%3A");
        assert!(topic.confirmation_place(&at(&escaped), "23abc").is_some());
        for url in [
            at(&sound).replace("https", "http"),
            at(&sound).replace("eu-west-1.amazonaws.com", "eu-west-2.amazonaws.com"),
            at(&sound).replace("amazonaws.com/", "amazonaws.com.evil.example/"),
            at(&sound).replace("amazonaws.com/", "amazonaws.com@evil.example/"),
            at(&sound).replace("amazonaws.com/", "amazonaws.com:444/"),
            at(&sound).replace("ConfirmSubscription", "DeleteTopic"),
            at(&sound).replace("ses-events", "other"),
            at(&sound).replace("23abc", "23abd"),
            at(&format!("{sound}&Action=DeleteTopic")),
            at(&format!("{sound}#")),
            at(&format!("{sound}\n")),
            format!("https://sns.eu-west-1.amazonaws.com/x?{sound}"),
            "https://evil.example/".to_owned(),
        ] {
            assert_eq!(topic.confirmation_place(&url, "23abc"), None, "{url}");
        }
    }
}
