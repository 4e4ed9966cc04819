"""The wire: messages, what they weigh, and how they become bytes."""
