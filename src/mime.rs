//! A rendered mail becomes the bytes of a message (RFC 5322, MIME).
