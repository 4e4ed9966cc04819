"""The federation: who asks, who answers, and what each side holds."""
