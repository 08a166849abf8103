"""What happens to a network whose sharpness is lowered at a fixed train loss."""
