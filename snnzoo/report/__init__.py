"""What people read: figures, and one HTML file about an evaluation."""
