"""The operations in Triton. Nothing else imports triton."""
