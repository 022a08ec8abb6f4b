"""What the paper says, checked on our curves; what is published, compared with them."""
